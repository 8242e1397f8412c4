"""Carry out commands in one process that lasts, and tell what each did: `python -m benchmarks.hostile.process HOME`.

A line of JSON comes in for each input and one goes out; the parent ends a process that takes too long.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.hostile.canary import Watch


def main() -> int:
    """Serve until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    commands = _commands()
    watch = Watch(Path(sys.argv[1]))
    warnings.simplefilter("ignore")
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(_tried(commands, watch, json.loads(line))) + "\n")
        answers.flush()
    return 0


def _tried(commands: dict[str, Callable[[list[str]], Any]], watch: Watch, asked: dict[str, Any]) -> dict[str, Any]:
    folder = Path(asked["folder"])
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    os.environ.pop("COMP_LINE", None)
    os.environ |= asked["environment"]
    os.chdir(folder)
    wall, work = time.perf_counter(), time.process_time()
    watch.begin(folder)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = commands[asked["command"]](asked["arguments"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - it is what is looked for
        code = f"{type(error).__name__}: {error}"[:500]
    finally:
        watch.end()
    text = said.buffer.getvalue().decode("utf-8", "replace")
    return {
        "code": code,
        "said": text[-3000:],
        "traceback": "Traceback (most recent call last)" in text or not isinstance(code, int),
        "seconds": time.perf_counter() - wall,
        "work": time.process_time() - work,
        "ran": watch.ran,
        "outside": watch.outside,
    }


def _commands() -> dict[str, Callable[[list[str]], Any]]:
    """Return the entry points by name, with all that they import imported."""
    from qatflow import api, encodings, inspect, worker  # noqa: F401 - torch is slow to import
    from qatflow.door import cli, inspection  # noqa: F401
    from qatflow.door.endings import MET, guarded
    from qatflow.recipe import Model
    from qatflow.report import __main__ as report
    from qatflow.report import study_page  # noqa: F401
    from qatflow.tasks.models import load_model

    def weights(arguments: list[str]) -> int:
        model = Model(name="digits_mobilenet", weights=arguments[0])
        return guarded(lambda: load_model(model) and MET)

    return {
        "qatflow": cli.main,
        "inspect": inspect.main,
        "report": report.main,
        "worker": worker.main,
        "encodings": encodings.main,
        "weights": weights,
    }


if __name__ == "__main__":
    sys.exit(main())
