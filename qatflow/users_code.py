"""The boundary to the user's code: what it raises is told in one sentence, led by its own file and line.

Whose an exception is, its traceback says: the deepest frame that is neither PyTorch's nor Python's own. Where that is
qatflow's, the exception is a defect of ours and passes as it is. What a `DataLoader` brings from a worker process has
its traceback in its text only, and is read from there.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

from qatflow.errors import MachineError, QatflowError, UserCodeError

OURS = Path(__file__).parent
SITE = {"site-packages", "dist-packages"}
PLUMBING = {"torch", "numpy"}
"""Libraries whose frames say nothing of whose code called them."""
STANDARD = Path(sysconfig.get_path("stdlib"))
INTERACTIVE = ("<stdin", "<ipython", "<string")
FRAME = re.compile(r'^ *File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)
MEMORY = (
    "the memory does not suffice; take a smaller data.batch_size (qat.batch_size for training), or fewer samples "
    "(calibration.samples, those of the steps)"
)
FULL = "the disk is full; make room there and run again: what is finished is kept"
READER_DIED = "a process that reads the data died, often for want of memory; try data.workers=0"
MACHINE = {
    "DataLoader worker (pid": READER_DIED,
    "MemoryError": MEMORY,
    "OutOfMemoryError": MEMORY,
    "can't allocate memory": MEMORY,
    "annot allocate memory": MEMORY,
    "out of memory": MEMORY,
    "ALLOC_FAILED": MEMORY,
    "Failed to allocate memory": MEMORY,
    "bad_alloc": MEMORY,
    "bad allocation": MEMORY,
    "could not create a primitive": MEMORY,
    "could not create a memory": MEMORY,
    "could not execute a primitive": MEMORY,
    "No space left on device": FULL,
    "Disk quota exceeded": FULL,
    "File too large": FULL,
    "not enough space on the disk": FULL,
    "database or disk is full": FULL,
    "disk I/O error": FULL,
    "file write failed": FULL,
}
"""What an exception says that the machine is to blame for, and what helps; the words are PyTorch's, oneDNN's, CUDA's,
ONNX Runtime's, safetensors', SQLite's and the systems' own."""
ASKED = re.compile(r"[Tt]ried to allocate (?P<amount>[\d.]+) ?(?P<unit>bytes|[KMG]i?B)")
CUT_OFF = {"ConnectionResetError", "ConnectionRefusedError", "BrokenPipeError", "EOFError", "FileNotFoundError"}
"""How else a process that died is noticed: while a tensor that it shares is fetched from it."""
BROUGHT = "Original Traceback (most recent call last):\n"
"""How the text of an exception goes on that PyTorch brought from another process or thread."""
Owner = Literal["qatflow", "user", "library", "nobody"]


def owner_of(file: Path) -> Owner:
    """Return whose code a file is; PyTorch's, NumPy's and Python's own say nothing, nor does what was generated."""
    parts = file.parts
    if OURS in file.parents:
        return "qatflow"
    if site := SITE & set(parts):
        return "nobody" if parts[parts.index(site.pop()) + 1] in PLUMBING else "library"
    generated = parts[:1] and parts[0].startswith("<") and not parts[0].startswith(INTERACTIVE)
    return "nobody" if generated or STANDARD in file.parents else "user"


class Frame(NamedTuple):
    """One frame of a traceback."""

    file: Path
    line: int
    function: str

    @property
    def owner(self) -> Owner:
        """Whose code it is."""
        return owner_of(self.file)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}, in {self.function}"


class Raised(NamedTuple):
    """An exception as it was raised, in whichever process."""

    kind: str
    message: str
    frames: list[Frame]

    @property
    def users_frame(self) -> Frame | None:
        """The deepest frame of the user's, unless qatflow's own code was called from there and raised."""
        whose = [frame for frame in self.frames if frame.owner in ("user", "qatflow")]
        return whose[-1] if whose and whose[-1].owner == "user" else None


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Turn what the user's code raises in here into a sentence; a defect of qatflow's own passes as it is.

    Args:
        what: whose code is called, as the user knows it: `gate.metric: my_package:f1`.

    Raises:
        UserCodeError: the user's code, or a library that it is about, raised.
        QatflowError: as it was raised in here.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        blame_machine(error)
        if isinstance(error, UserCodeError):
            raise
        raised = raised_by(error, error.__traceback__)
        if isinstance(error, QatflowError):
            if raised.message == str(error):
                raise
            raise type(error)(raised.message) from error  # without the worker's traceback in its text
        within = [frame for frame in raised.frames[2:] if frame.owner != "nobody"]  # behind this frame and the block's
        if within and within[-1].owner == "qatflow":
            raise
        raise UserCodeError(said(error), what) from error


@contextmanager
def anywhere() -> Iterator[None]:
    """Turn what the user's code raises in here into a sentence, wherever that is; all else passes as it is.

    Raises:
        UserCodeError: the deepest code that is not a library's is the user's.
    """
    try:
        yield
    except QatflowError:
        raise
    except (Exception, SystemExit) as error:
        blame_machine(error)
        if raised_by(error, error.__traceback__).users_frame is None:
            raise
        raise UserCodeError(said(error)) from error


def blame_machine(error: BaseException) -> None:
    """Tell of what is neither the user's code nor ours: the machine ran out of something.

    Raises:
        MachineError: it did.
    """
    if not isinstance(error, QatflowError) and lacking(error):
        raise MachineError(said(error)) from error


def lacking(error: BaseException) -> str:
    """Return what the machine ran out of, as an exception or what caused it says, and what helps; empty if nothing."""
    text = f"{type(error).__name__}: {error}"
    found = next((advice for sign, advice in MACHINE.items() if sign in text), "")
    asked = ASKED.search(text) if found is MEMORY else None
    if asked is not None:
        lack, _, advice = found.partition("; ")
        return f"{lack} (PyTorch asked for {_asked(asked)}); {advice}"
    if not found and _cut_off(error):
        return READER_DIED
    return found or (lacking(error.__cause__) if error.__cause__ is not None else "")


def _cut_off(error: BaseException) -> bool:
    raised = raised_by(error, error.__traceback__)
    fetches = (frame.file.parts[-3:] == ("torch", "multiprocessing", "reductions.py") for frame in raised.frames)
    return raised.kind in CUT_OFF and any(fetches)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether the machine ran out of memory, as an exception or what caused it says."""
    return lacking(error).startswith(MEMORY.partition("; ")[0])


def _asked(found: re.Match[str]) -> str:
    return amount(float(found["amount"])) if found["unit"] == "bytes" else f"{found['amount']} {found['unit']}"


def amount(size: float) -> str:
    """Return an amount of memory as it is read best."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}" if size < 1000 else f"{size:,.0f} {units[0]}"


def said(error: BaseException) -> str:
    """Return where an exception was raised, of which kind it is, and the first and last line of what it says.

    Of one that the machine is to blame for, what that ran out of takes the place of what it says.

    The place comes first where it is in the user's code, and last where it is in a library; none is told of PyTorch's.
    What qatflow raises on purpose is a sentence already.
    """
    raised = raised_by(error, error.__traceback__)
    if isinstance(error, QatflowError):
        return raised.message
    lines = [line.strip() for line in raised.message.splitlines() if line.strip()]
    lack = lacking(error)
    sentence = lack or ": ".join(dict.fromkeys([raised.kind, *lines[:1], *lines[-1:]]))
    if raised.users_frame is not None:
        return f"{raised.users_frame}: {sentence}"
    libraries = [frame for frame in raised.frames if frame.owner == "library" and not lack]
    return f"{sentence}, raised at {libraries[-1]}" if libraries else sentence


def raised_by(error: BaseException, trace: TracebackType | None) -> Raised:
    """Return an exception as it was raised, frames from the outermost on."""
    found = [(one.f_code, line) for one, line in traceback.walk_tb(trace)]
    frames = [Frame(Path(code.co_filename), line, code.co_name) for code, line in found]
    text = str(error)
    if BROUGHT not in text:
        return Raised(type(error).__name__, text, frames)
    remote = text.rpartition("Traceback (most recent call last):\n")[2]
    after = FRAME.split(remote)[-1].splitlines()[1:]
    spoken = "\n".join(line for line in after if not line.startswith(" "))
    kind, _, message = spoken.partition(": ")
    return Raised(kind.rpartition(".")[2] or type(error).__name__, message, [*frames, *frames_in(remote)])


def frames_in(text: str) -> list[Frame]:
    """Return the frames of a traceback that was made a text."""
    return [Frame(Path(one["file"]), int(one["line"]), one["function"]) for one in FRAME.finditer(text)]
