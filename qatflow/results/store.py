"""The run folder on disk: files that appear whole or not at all, and keys that say what a result depends on."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from qatflow.errors import RunFolderError
from qatflow.users_code import FULL, lacking

MOST_BYTES = 2**28
"""Of a JSON file: more than the measurements of a million samples take."""
MOST_DEPTH = 50
TOO_DEEP = f"it is nested more than {MOST_DEPTH} deep"
MOST_WHOLE = 2**63 - 1
"""The largest whole number that tables hold."""
KEY = "run.dir"
"""By what a run folder is chosen."""
META = "meta.json"
"""What a candidate's or trial's folder says of itself; written last."""


def made_folder(folder: Path, key: str = KEY) -> Path:
    """Make a folder, which is chosen by `key`, where it is not there yet, and return it.

    Raises:
        RunFolderError: it is something else, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        message = f"{folder} is no folder; {_elsewhere(key)}"
        raise RunFolderError(message) from error
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        message = f"cannot make the folder {folder}: {reason(error)}; {_elsewhere(key)}"
        raise RunFolderError(message) from error
    return folder


def write_atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a file beside `path`, then give it that name; returns `path`.

    A reader sees the old file or the new one, never half of one.

    Raises:
        RunFolderError: the folder cannot be written to, or the disk is full, whichever library found that.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        aside = Path(name)
        try:
            write(aside)
            aside.chmod(0o644)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except Exception as error:
        if isinstance(error, OSError) or lacking(error) == FULL:
            raise unwritable(path, error) from error
        raise
    return path


def unwritable(path: Path, error: Exception, key: str = KEY) -> RunFolderError:
    """Return what to say of a file that could not be written; its folder is chosen by `key`."""
    said = f"cannot write {path}: {reason(error)}"
    return RunFolderError(said if lacking(error) == FULL else f"{said}; {_elsewhere(key)}")


def _elsewhere(key: str) -> str:
    return f"choose another folder with {key}=FOLDER"


def reason(error: BaseException) -> str:
    """Return why a file or folder could not be written, in a few words."""
    if lacking(error) == FULL:
        return FULL
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole; see `write_atomically`."""
    return write_atomically(path, lambda aside: void(aside.write_text(text, encoding="utf-8")))


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file whole, with sorted keys left as they come and no NaN."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def void(_: object) -> None:
    """Drop a result, so that an expression can stand where nothing is returned."""


def parsed(path: Path) -> Any:
    """Return what a JSON file holds, every number and text of which can be stored, shown and computed with.

    Raises:
        OSError: it is not there, no file, or cannot be read.
        ValueError: it is damaged; the message says how, without the path.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise OSError(errno.EINVAL, "it is not a file")
    if path.exists() and path.stat().st_size > MOST_BYTES:
        message = f"it has {path.stat().st_size:,} bytes, and {MOST_BYTES:,} are the most"
        raise ValueError(message)
    text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_real, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    _check_depth(value)
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be
    return value


def _check_depth(value: Any) -> None:
    inside = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MOST_DEPTH):
        inside = [part for one in inside for part in (one.values() if isinstance(one, dict) else one)]
        inside = [one for one in inside if isinstance(one, (dict, list))]
        if not inside:
            return
    raise ValueError(TOO_DEEP)


def _whole(text: str) -> int:
    if len(text) > len(str(MOST_WHOLE)) + 1 or abs(int(text)) > MOST_WHOLE:
        message = f"a whole number has {len(text)} digits"
        raise ValueError(message)
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    message = f"{text[:20]} is no number that a file holds"
    raise ValueError(message)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        RunFolderError: it is not there or damaged.
    """
    try:
        return parsed(path)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise RunFolderError(message) from error
    except ValueError as error:
        message = f"{path} is damaged ({error}); remove it and run again"
        raise RunFolderError(message) from error


def read_usable(path: Path, note: Callable[[str], None]) -> Any:
    """Return what a JSON file holds; None where there is none, or where it is damaged, which `note` is told."""
    if not path.exists() and not path.is_symlink():
        return None
    try:
        return read_json(path)
    except RunFolderError as error:
        note(f"{error}; it is made anew")
        return None


def key_of(*parts: Any) -> str:
    """Return a hash of JSON-able parts: the same parts give the same key in every process."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@cache
def code_version(*places: str) -> str:
    """Return a hash of qatflow's own source, so that a result of older code is not taken for one of newer.

    Args:
        places: folders and files of the package, such as `quant` and `bench.py`; all of it where there are none.
    """
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not places or any(name == place or name.startswith(f"{place}/") for place in places):
            digest.update(name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder but `meta.json`, which holds them, by name.

    Raises:
        RunFolderError: a file cannot be read.
    """
    names = sorted(path for path in folder.glob("*") if path.is_file() and path.name != META)
    return {path.name: sha256(path) for path in names if not path.name.startswith(".")}


def check_digests(folder: Path, expected: object) -> None:
    """Check that the files of a folder are those that were written.

    Args:
        folder: of a candidate or trial.
        expected: the SHA-256 of every file, by name, as the folder itself tells it.

    Raises:
        RunFolderError: one is missing or has other content; it is named.
    """
    if not isinstance(expected, Mapping):
        message = f"{folder / META} does not tell the SHA-256 of its files"
        raise RunFolderError(message)
    for name, wanted in expected.items():
        path = folder / name
        if not path.is_file():
            message = f"{path} is missing"
            raise RunFolderError(message)
        if sha256(path) != wanted:
            message = f"{path} is not what was written there: its SHA-256 is another one"
            raise RunFolderError(message)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        RunFolderError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise RunFolderError(message) from error
    return digest.hexdigest()
