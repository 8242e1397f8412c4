"""How a command ends: its exit code, and what is said of a mistake and of a defect."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from functools import reduce
from operator import or_

from rich.console import Console

from qatflow.errors import QatflowError
from qatflow.report.console import say
from qatflow.results.result import RunResult
from qatflow.users_code import anywhere

MET, ERROR, MISSED, DEFECT, TOO_SLOW = 0, 1, 2, 3, 4
GATES = {MET, MISSED, TOO_SLOW, MISSED | TOO_SLOW}


def code_of(result: RunResult) -> int:
    """Return the exit code of a run that finished."""
    return (MET if result.accurate else MISSED) | (TOO_SLOW if result.too_slow else MET)


def worst(codes: list[int]) -> int:
    """Return the code of several jobs: a defect outweighs an error, that a missed gate; no job at all is an error.

    Where some miss the metric and others are too slow, it says both.
    """
    if DEFECT in codes:
        return DEFECT
    return reduce(or_, codes) if codes and {*codes} <= GATES else ERROR


def guarded(work: Callable[[], int]) -> int:
    """Return `work`'s exit code.

    A mistake, and what code of the user's raised, is told in sentences; a defect of ours with its traceback.
    """
    try:
        with anywhere():
            return work()
    except QatflowError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        else:
            say(Console(stderr=True), f"error: {error}")
        return ERROR
    except Exception:  # noqa: BLE001 - the door: every defect ends here, and in a sweep the next job goes on
        traceback.print_exc()
        say(Console(stderr=True), "error: this is a defect of qatflow's own; please report it with the lines above")
        return DEFECT
