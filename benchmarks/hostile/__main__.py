"""`python -m benchmarks.hostile --inputs N [--seed S]`: hostile inputs of every kind, and what became of them.

Each is met by a real entry point in a process that lasts, watched by audit hooks. What took more than five seconds of
the processor, or 30 by the clock, hangs; a process that hangs or dies is noted and replaced. Exit code 1 if anything
but exit codes and sentences came out; those inputs are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.hostile.inputs import Input, Kinds

CODES = (0, 1, 2)
"""Exit codes that a malformed input may have: 2 is what `encodings check` finds."""
WORK, CLOCK, START = 5.0, 30.0, 300.0
WRONGS = ("tracebacks", "hangs", "codes run", "files outside")


@dataclass
class Process:
    """A process that carries out one input after the other; a new one takes the place of one that hangs or dies."""

    home: Path
    running: subprocess.Popen[str] | None = None
    answers: queue.Queue[str] = field(default_factory=queue.Queue)
    listener: threading.Thread = field(default_factory=threading.Thread)

    def ask(self, asked: Input, folder: Path) -> dict[str, Any]:
        """Return what an input did; `died` or `hung` where it never answered."""
        running = self._start()
        assert running.stdin is not None
        running.stdin.write(json.dumps({**asdict(asked), "folder": str(folder)}) + "\n")
        running.stdin.flush()
        answer = self._answer(CLOCK)
        if answer:
            return dict(json.loads(answer))
        self.stop()
        return {"hung": answer is None, "died": answer == ""}

    def stop(self) -> None:
        """End the process."""
        if self.running is not None:
            self.running.kill()
            self.running.wait()
            self.listener.join()  # which reads to the end
            for pipe in (self.running.stdin, self.running.stdout):
                with suppress(BrokenPipeError):  # what was left to write
                    if pipe is not None:
                        pipe.close()
            self.running = None

    def _start(self) -> subprocess.Popen[str]:
        if self.running is None:
            command = [sys.executable, "-m", "benchmarks.hostile.process", str(self.home)]
            places = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH", ""))))
            own = {
                "PYTHONDONTWRITEBYTECODE": "1",
                "TMPDIR": str(self.home),
                "TORCHINDUCTOR_CACHE_DIR": str(self.home / "compiled"),  # which PyTorch lets children inherit
                "PYTHONPATH": places,
                "OMP_NUM_THREADS": "1",
            }
            environment, pipe = {**os.environ, **own}, subprocess.PIPE
            self.running = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
            self.answers = queue.Queue()
            self.listener = threading.Thread(target=_listen, args=(self.running, self.answers), daemon=True)
            self.listener.start()
            if self._answer(START) != "ready\n":
                message = "the process that carries inputs out did not start"
                raise RuntimeError(message)
        return self.running

    def _answer(self, seconds: float) -> str | None:
        """Return a line; an empty one where the process died, None where it took too long."""
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            return None


def _listen(running: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    assert running.stdout is not None
    for line in running.stdout:
        answers.put(line)
    answers.put("")


def wrongs_of(did: dict[str, Any]) -> list[str]:
    """Return what is wrong with what an input did, of `WRONGS`; a process that died counts as a traceback."""
    if "code" not in did:
        return ["hangs" if did.get("hung") else "tracebacks"]
    found = ["tracebacks"] if did["traceback"] or did["code"] not in CODES else []
    found += ["hangs"] if did["work"] > WORK else []
    found += ["codes run"] if did["ran"] else []
    return found + (["files outside"] if did["outside"] else [])


def measure(inputs: int, seed: int, run: Path, kept: Path, only: str = "") -> dict[str, Counter[str]]:
    """Meet so many inputs, the kinds in turn, and return by kind how many there were and what was wrong."""
    kinds = {name: make for name, make in Kinds(run).makers.items() if only in ("", name)}
    counts: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    with tempfile.TemporaryDirectory(prefix="hostile-home-") as home:
        process = Process(Path(home))
        try:
            for number in range(inputs):
                name = list(kinds)[number % len(kinds)]
                folder = Path(tempfile.mkdtemp(prefix="hostile-"))
                asked = kinds[name](random.Random(f"{seed}-{number}"), folder)
                did = process.ask(asked, folder)
                wrongs = wrongs_of(did)
                counts[name].update(["inputs", *wrongs])
                if wrongs:
                    _keep(kept / f"{seed}-{number}", folder, {"wrong": wrongs, **asdict(asked), **did})
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            process.stop()
    return counts


def _keep(place: Path, folder: Path, told: dict[str, Any]) -> None:
    """Keep an input for a look, with what it did."""
    shutil.copytree(folder, place, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("export"))
    (place / "told.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    found = [str(one) for kind in ("ran", "outside") for one in told.get(kind, ())]
    print(f"{place}: {'; '.join([*told['wrong'], *found])}", file=sys.stderr)


def valid_run(folder: Path) -> Path:
    """Return the folder of a sound run, made there unless it is there."""
    if not (folder / "export" / "verification.json").is_file():
        command = [sys.executable, "-m", "qatflow", "recipe=tiny", f"run.dir={folder}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Print the table; returns 1 if any input did more than end with an exit code and a sentence."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    parser.add_argument("--inputs", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="of this kind only")
    parser.add_argument("--run", type=Path, help="the folder of a run of recipe=tiny; one is made where there is none")
    parser.add_argument("--keep", type=Path, default=Path("hostile"), help="where inputs that did harm are left")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        counts = measure(args.inputs, args.seed, valid_run(args.run or Path(scratch) / "run"), args.keep, args.kind)
    print(f"| kind | inputs | {' | '.join(WRONGS)} |\n| --- | --- | {' | '.join('---' for _ in WRONGS)} |")
    for name, found in {**counts, "all": sum(counts.values(), Counter())}.items():
        print(f"| {name} | {' | '.join(str(found[one]) for one in ('inputs', *WRONGS))} |")
    return int(any(found[one] for found in counts.values() for one in WRONGS))


if __name__ == "__main__":
    sys.exit(main())
