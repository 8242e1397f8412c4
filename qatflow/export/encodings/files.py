"""Encodings files on disk, and the table of versions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qatflow.errors import EncodingsError, RunFolderError
from qatflow.export.encodings import version_0_6_1, version_1_0_0, version_2_0_0
from qatflow.export.encodings.check import problems_of
from qatflow.export.encodings.fields import Fields, fail, shown
from qatflow.export.encodings.tensor import EncodingsFile
from qatflow.results.store import write_json

WRITERS: dict[str, Callable[[EncodingsFile], dict[str, Any]]] = {
    version_0_6_1.VERSION: version_0_6_1.to_json,
    version_1_0_0.VERSION: version_1_0_0.to_json,
    version_2_0_0.VERSION: version_2_0_0.to_json,
}
"""Versions that can be written."""
READERS: dict[str, Callable[[Fields], EncodingsFile]] = {
    version_0_6_1.VERSION: version_0_6_1.from_json,
    version_1_0_0.VERSION: version_1_0_0.from_json,
    version_2_0_0.VERSION: version_2_0_0.from_json,
    version_2_0_0.READ_ALIKE: version_2_0_0.from_json,
}
"""Versions that can be read."""


def to_json(file: EncodingsFile, version: str) -> dict[str, Any]:
    """Return the content of a file of some version, without what that version cannot hold; `convert` names that.

    Raises:
        EncodingsError: the version cannot be written, or the encodings are not sound.
    """
    if version not in WRITERS:
        message = f"version {shown(version)} cannot be written; there are {', '.join(WRITERS)}"
        raise EncodingsError(message)
    fail(problems_of(file))
    return WRITERS[version](file)


def from_json(content: object) -> EncodingsFile:
    """Return what the content of a file says, its version told by the file itself.

    Raises:
        EncodingsError: fields are missing, of another type, or stand for something that is not supported; all of
            them are in the message. Whether the numbers make sense is for `validate`.
    """
    problems: list[str] = []
    file = _from_json(content, problems)
    fail(problems)
    return file


def read(path: Path) -> EncodingsFile:
    """Return what a file says.

    Raises:
        EncodingsError: it cannot be read, or is no encodings file of a version that is supported.
    """
    problems: list[str] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, problems))
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}"
        raise EncodingsError(message) from error
    except (ValueError, RecursionError) as error:
        message = f"{path} is not JSON ({error}); expected an encodings file of AIMET"
        raise EncodingsError(message) from error
    file = _from_json(content, problems)
    if problems:
        message = f"{path}: {'; '.join(problems)}"
        raise EncodingsError(message)
    return file


def write(path: Path, file: EncodingsFile, version: str) -> Path:
    """Write a file of some version, whole or not at all; returns `path`.

    Raises:
        EncodingsError: the encodings are not sound, the version has no writer, or the file cannot be written.
    """
    content = to_json(file, version)
    try:
        return write_json(path, content)
    except RunFolderError as error:
        reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
        message = f"cannot write {path}: {reason}"
        raise EncodingsError(message) from error
    except (ValueError, RecursionError) as error:
        message = f"cannot write {path}: a number is not finite, or producer or quantizer_args hold no JSON ({error})"
        raise EncodingsError(message) from error


def _from_json(content: object, problems: list[str]) -> EncodingsFile:
    top = Fields(content, "", problems)
    version = top.text("version", tuple(READERS))
    return READERS[version](top) if version else EncodingsFile(version="")


def _object(pairs: list[tuple[str, Any]], problems: list[str]) -> dict[str, Any]:
    """Return an object of the file; two fields of one name, of which JSON keeps the last, are a problem."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        problems += [
            f"{shown(key)} is there {count} times; expected once" for key, count in counts.items() if count > 1
        ]
    return found
