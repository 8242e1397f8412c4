"""What would show that input ran code: a module whose functions leave a file, and a watch over files and processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.hostile.mutation import CANARY

MARKER = "code_ran"
SOURCE = f"""\
from pathlib import Path
Path(__file__).with_name({MARKER!r}).write_text("imported")
def run(*arguments, **keywords):
    Path(__file__).with_name({MARKER!r}).write_text("called")
"""
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect")
MOVES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
HARMLESS = ("/dev/null", "/dev/tty")


class Watch:
    """Notes what a command does outside of its folder, from Python's audit events; there can be one a process."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / f"{CANARY}.py").write_text(SOURCE, encoding="utf-8")
        sys.path.insert(0, str(home))
        self.folder: str | None = None
        self.outside: list[str] = []
        self.ran: list[str] = []
        sys.addaudithook(self._hear)

    def begin(self, folder: Path) -> None:
        """Watch from now on."""
        sys.modules.pop(CANARY, None)
        self.outside, self.ran = [], []
        self.folder = os.path.realpath(folder)

    def end(self) -> None:
        """Watch no more, and look whether the canary sang."""
        self.folder = None
        marker = self.home / MARKER
        if marker.exists():
            self.ran.append(f"{CANARY} was {marker.read_text(encoding='utf-8')}")
            marker.unlink()

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        folder = self.folder
        if folder is None:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            mode, flags = arguments[1], arguments[2]
            writes = (
                any(one in mode for one in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            )
            if writes:
                self._touched(event, arguments[0])
        elif event in MOVES:
            self._touched(event, arguments[0])
        elif event in RUNS and not str(arguments[0]).endswith(("git", "uname")):
            self.folder = None
            self.ran = [*self.ran, f"{event} {arguments[0]}"[:200]][:20]
            self.folder = folder

    def _touched(self, event: str, path: Any) -> None:
        folder, self.folder = self.folder, None  # what is done here is not the input's
        try:
            real = os.path.realpath(os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else ""
        except (OSError, ValueError):
            real = ""
        self.folder = folder
        inside = real in HARMLESS or real == folder or real.startswith((f"{folder}{os.sep}", str(self.home)))
        if real and not inside:
            self.outside = [*self.outside, f"{event} {real}"[:200]][:20]
