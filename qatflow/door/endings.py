"""How a command ends: its exit code, and what is said of a mistake and of a defect."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

from rich.console import Console

from qatflow.errors import QatflowError
from qatflow.report.console import say
from qatflow.users_code import anywhere

MET, ERROR, MISSED, DEFECT = 0, 1, 2, 3


def worst(codes: list[int]) -> int:
    """Return the code of several jobs: a defect outweighs an error, that a missed gate; no job at all is an error."""
    return next((code for code in (DEFECT, ERROR, MISSED, MET) if code in codes), ERROR)


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
