"""Command lines that can be pasted into a shell."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

QATFLOW = ("python", "-m", "qatflow")
PLAIN = re.compile(r"[\w./+@-]+")
"""Text that needs no quotes in Hydra's grammar."""


def own() -> str:
    """Return the command that this process was started with."""
    return shlex.join(sys.orig_argv)


def shell(arguments: Iterable[str]) -> str:
    """Return a command of qatflow's with these arguments."""
    return shlex.join([*QATFLOW, *arguments])


def setting(key: str, value: object) -> str:
    """Return the override that sets `key` to this text, quoted for Hydra where that is needed."""
    text = str(value)
    if not PLAIN.fullmatch(text):
        text = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"{key}={text}"


def again(folder: Path, trust: Sequence[str] = (), storage: str | None = None) -> str:
    """Return the command that goes on with the run in a folder, made from the folder alone.

    Args:
        folder: of the run.
        trust: packages that its recipe may import from.
        storage: of its study; null is the one in the folder.
    """
    trusted = [f"trust=[{','.join(trust)}]"] if trust else []
    stored = [setting("search.storage", storage)] if storage else []
    return shell([setting("recipe", folder / "recipe.yaml"), setting("run.dir", folder), *stored, *trusted])
