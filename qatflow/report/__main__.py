"""`python -m qatflow.report RUN_DIR ...`: make reports again from what runs left.

Needs no torch and no model. A mistake is one line and exit code 1; the code 2 means a missed gate in qatflow, so
argparse's own is not used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from qatflow.results.signals import carried_out, end_early

if __name__ == "__main__":
    end_early()  # what follows takes its time to import

from rich.console import Console

from qatflow.errors import QatflowError
from qatflow.report.console import say
from qatflow.report.sweep import run_folders, write_sweep
from qatflow.report.write import write

OK, MISTAKE = 0, 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Tell a mistake in the command line and exit with 1."""
        self.exit(MISTAKE, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Rebuild the reports named on the command line and return the exit code; one mistake does not stop the others."""
    parser = _Parser("python -m qatflow.report", description="Rebuild reports from run folders or folders of runs.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_DIR", help="a run folder, or a folder of them")
    parser.add_argument("--no-html", action="store_true", help="write a run's CSV files only")
    args = parser.parse_args(argv)
    return carried_out(lambda: _rebuilt(args.folders, html=not args.no_html))


def _rebuilt(folders: list[Path], html: bool) -> int:
    code = OK
    for folder in folders:
        try:
            written = rebuild(folder, html)
        except QatflowError as error:
            say(Console(stderr=True), f"error: {error}")
            code = MISTAKE
        else:
            say(Console(), "\n".join(map(str, written)))
    return code


def rebuild(folder: Path, html: bool = True) -> list[Path]:
    """Write the report of a run folder, or the summary of a folder of runs; returns the paths.

    Raises:
        RunFolderError: `folder` is neither.
    """
    runs = run_folders(folder) if folder.is_dir() and not (folder / "result.json").exists() else []
    return write_sweep(folder, runs) if runs else write(folder, html=html)


if __name__ == "__main__":
    sys.exit(main())
