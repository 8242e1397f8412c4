"""Does a run that is killed again and again end like one that nobody disturbs?

    python -m benchmarks.kill --kills 30
    python -m benchmarks.kill --kills 300 --recipe tiny sweep --seed 1

Every recipe runs once undisturbed. Then its command is started over and over on one folder: each start is killed
(SIGKILL, its whole process group) at a moment drawn over the time that the undisturbed run took, imports and the very
first writes included, or right when a file of the folder changes; after `--most` kills, or when a start ends before its
moment has come, the run has ended and is compared: every value of `results.csv` and `trials.csv` but seconds, text by
text, and the exported weights, bit by bit. Both sides train in one process, on one thread each. Prints a row a recipe,
and exits with 1 where a run differs, or did a rung again that it had finished.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.quickstarts import print_table, table_row

RECIPES: dict[str, tuple[str, ...]] = {
    "tiny": ("recipe=tiny",),
    "quickstart": ("recipe=quickstart", "ladder=all_rungs"),
    "quickstart_qat": ("recipe=quickstart_qat", "search.epochs=[2,3]", "search.max_trials=6"),
    "sweep": ("-m", "recipe=tiny", "precision=w8a8,w4a8"),
}
"""What is run, by the name in the table: the shipped recipes, QAT with few epochs and more trials, and a sweep."""
TABLES = ("results.csv", "trials.csv")
TIMES = ("seconds",)
"""Columns that no two runs have alike."""
WEIGHTS = Path("export", "model.safetensors")
ANEW = ("fp32", "qat", "judge: qat")
"""What begins again though it was finished: to be looked up, and for another trial's model."""
COLUMNS = "recipe, kills, of these at a write, starts, runs, equal, unequal, rungs done twice, first difference"
AT_WRITES = 0.4
"""Share of the kills that wait for a file to change."""
POLL = 0.003
"""Seconds between two looks at the folder."""


@dataclass
class Undisturbed:
    """The run that others are compared with."""

    folder: Path
    seconds: float
    writes: int
    """How many times a file of it appeared or changed, as far as was seen."""


@dataclass
class Tally:
    """What became of one recipe's runs."""

    kills: int = 0
    at_writes: int = 0
    starts: int = 0
    equal: int = 0
    twice: int = 0
    differences: list[str] = field(default_factory=list)


def command(name: str, folder: Path) -> list[str]:
    """Return the command line of a recipe in a folder, the same at every start."""
    place = "hydra.sweep.dir" if name == "sweep" else "run.dir"
    return [sys.executable, "-m", "qatflow", *RECIPES[name], "device=cpu", f"{place}={folder}"]


@dataclass
class Moment:
    """When a start is killed: after so many seconds, or so many writes; never where both are None."""

    seconds: float | None = None
    writes: int | None = None


def start(name: str, folder: Path, moment: Moment) -> tuple[bool, int]:
    """Start a recipe and kill it at its moment; return whether that came, and how many writes were seen.

    Raises:
        RuntimeError: it ended by itself, and not well.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun, watch = time.perf_counter(), _Watch(folder)
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command(name, folder), env=environment, stdout=said, stderr=said, start_new_session=True
        )
        while process.poll() is None:
            writes = watch.look()
            late = moment.seconds is not None and time.perf_counter() - begun >= moment.seconds
            if late or (moment.writes is not None and writes >= moment.writes):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return True, writes
            time.sleep(POLL)
        if process.returncode not in (0, 2):
            said.seek(0)
            line, last = " ".join(command(name, folder)), said.read()[-2000:].decode(errors="replace")
            message = f"{line} ended with {process.returncode}: {last}"
            raise RuntimeError(message)
    return False, watch.look()


class _Watch:
    """Counts how often files of a folder appear or change, from when it was made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writes = 0
        self._known = dict(self._files())

    def look(self) -> int:
        """Return the number of writes so far."""
        now = dict(self._files())
        self.writes += sum(self._known.get(name) != state for name, state in now.items())
        self._known = now
        return self.writes

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for home, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(home, name)  # noqa: PTH118  thousands of times a second
                try:
                    state = os.stat(path)  # noqa: PTH116
                except OSError:
                    continue  # it was a file aside, and has its name now
                yield path, (state.st_mtime_ns, state.st_ino)


def undisturbed(name: str, folder: Path) -> Undisturbed:
    """Carry out a recipe that nobody disturbs."""
    begun = time.perf_counter()
    _, writes = start(name, folder, Moment())
    return Undisturbed(folder, time.perf_counter() - begun, writes)


def moments(whole: Undisturbed, chance: random.Random) -> Iterator[Moment]:
    """Yield moments without end."""
    while True:
        if chance.random() < AT_WRITES:
            yield Moment(writes=chance.randint(1, whole.writes))
        else:
            yield Moment(seconds=chance.uniform(0, whole.seconds))


def disturbed(name: str, folder: Path, drawn: Iterator[Moment], most: int, tally: Tally) -> None:
    """Start a recipe until it ends, killing all but the last start, at most so many."""
    for number in range(most + 1):
        moment = next(drawn) if number < most else Moment()
        tally.starts += 1
        killed, _ = start(name, folder, moment)
        if not killed:
            return
        tally.kills += 1
        tally.at_writes += moment.writes is not None


def difference(one: Path, other: Path) -> str:
    """Return the first thing that two finished folders differ in; an empty string where nothing does."""
    runs = sorted(path.parent.relative_to(one) for path in one.rglob("result.json"))
    for run in runs:
        found = next(_table_differences(one / run, other / run), "") or _weights_differ(one / run, other / run)
        if found:
            return found if run == Path() else f"{run}: {found}"
    return ""


def _table_differences(one: Path, other: Path) -> Iterator[str]:
    for table in TABLES:
        rows = zip_longest(_rows(one / table), _rows(other / table))
        for number, (wanted, got) in enumerate(rows, 1):
            if wanted is None or got is None:
                yield f"{table}: {'more' if wanted is None else 'fewer'} rows"
                return
            for column in wanted:
                if column not in TIMES and wanted[column] != got.get(column):
                    yield f"{table}, row {number}, {column}: {wanted[column]} and {got.get(column)}"


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _weights_differ(one: Path, other: Path) -> str:
    wanted, got = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    if wanted.keys() != got.keys():
        return f"{WEIGHTS}: other tensors"
    return next((f"{WEIGHTS}: {name}" for name in wanted if not _same_bits(wanted[name], got[name])), "")


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))


def done_twice(folder: Path) -> int:
    """Return how many rungs were begun again after they had been finished, in all runs of a folder, by their logs."""
    return sum(_done_twice(log) for log in folder.rglob("log.txt"))


def _done_twice(log: Path) -> int:
    finished: set[str] = set()
    count = 0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        said = line.partition("qatflow.results.journal: ")[2]
        rung, _, rest = said.partition(" on ")
        part, _, measured = rest.partition(": ")
        begun = said.partition(": ")[0]
        if measured.startswith("value "):
            finished.add(f"judge: {rung}" if part == "test" else rung)
        elif said.startswith("judge: "):
            begun = rung
        count += begun in finished and begun not in ANEW
    return count


def row(name: str, kills: int, most: int, home: Path, chance: random.Random) -> tuple[list[str], bool]:
    """Run a recipe until it was killed so often; return its row, and whether all is as it should be."""
    whole = undisturbed(name, home / "undisturbed")
    drawn, tally, runs = moments(whole, chance), Tally(), 0
    while tally.kills < kills:
        folder = home / str(runs)
        runs += 1
        disturbed(name, folder, drawn, min(most, kills - tally.kills), tally)
        found = difference(whole.folder, folder)
        tally.twice += done_twice(folder)
        if found:
            tally.differences.append(found)
            print(f"{folder}: {found}", file=sys.stderr, flush=True)
        else:
            tally.equal += 1
    counts = (tally.kills, tally.at_writes, tally.starts, runs, tally.equal, len(tally.differences), tally.twice)
    cells = [name, *map(str, counts), tally.differences[0] if tally.differences else ""]
    return cells, not tally.differences and not tally.twice


def main() -> int:
    """Kill runs of all recipes, print their table, and tell whether all ended alike."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=30, help="of all recipes together")
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--most", type=int, default=5, help="kills of one run, after which it is left to end")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="a folder to leave the runs in")
    options = parser.parse_args()
    well = True
    with tempfile.TemporaryDirectory() as home:
        print_table(COLUMNS, [])
        for number, name in enumerate(options.recipe):
            kills = options.kills // len(options.recipe) + (number < options.kills % len(options.recipe))
            chance = random.Random(f"{options.seed} {name}")
            cells, alike = row(name, kills, options.most, (options.keep or Path(home)) / name, chance)
            print(table_row(cells), flush=True)
            well = well and alike
    return int(not well)


if __name__ == "__main__":
    sys.exit(main())
