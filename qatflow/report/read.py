"""Read what a run left in `result.json`, of this schema or an older one.

A field that an older qatflow did not write has the value that it meant then; a newer schema is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qatflow.errors import RunFolderError
from qatflow.results.lock import holder
from qatflow.results.record import said_of
from qatflow.results.result import SCHEMA_VERSION, RunResult
from qatflow.results.store import parsed

CUT_OFF = "it was cut off: its process was killed, or its machine stopped"


def read_result(folder: Path | str) -> RunResult:
    """Return the result that a run left in its folder.

    A run that goes on, by its file, though nobody holds its folder, was interrupted.

    Raises:
        RunFolderError: there is none, or it is damaged or of a newer version.
    """
    folder = Path(folder)
    path = folder / "result.json"
    if not folder.is_dir():
        message = f"{folder} is not a folder; give the folder of a run, such as reports/quickstart/20260131-120000"
        raise RunFolderError(message)
    if not path.exists():
        message = f"{folder} has no result.json, so it is not a run folder; give the folder that a run wrote"
        raise RunFolderError(message)
    try:
        values = parsed(path)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}; check who may read it"
        raise RunFolderError(message) from error
    except ValueError as error:
        message = f"{path} is not valid JSON ({error}); start the run again on this folder, which writes it anew"
        raise RunFolderError(message) from error
    result = _checked(path, values).in_folder(folder)
    if result.status == "running" and holder(folder) is None:
        return result.model_copy(update={"status": "interrupted", "error": CUT_OFF})
    return result


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return a result of any schema up to this one as this one has it.

    Raises:
        KeyError: its schema is none of them.
    """
    while values["schema_version"] != SCHEMA_VERSION:
        values = UPGRADES[values["schema_version"]](values)
    return values


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    """All was chosen and judged on the test part, and looks at it were not counted."""
    gate = values.get("gate") or {}

    def upgraded_record(record: dict[str, Any]) -> dict[str, Any]:
        confidence = None if record.get("drop_low") is None else gate.get("confidence")
        return {**record, "part": "test", "samples": gate.get("samples"), "confidence": confidence}

    candidates = [upgraded_record(record) for record in values.get("candidates", ())]
    return {**values, "schema_version": 2, "candidates": candidates}


def _from_2(values: dict[str, Any]) -> dict[str, Any]:
    """What would help activations was advised, and only another way to find ranges was climbed."""
    judged = values.get("activations_only")
    if judged is not None:
        kept = {key: judged[key] for key in ("drop", "drop_low", "passed", "hopeless", "sqnr_db")}
        judged = {**kept, "advice": _advice(judged)}
    return {**values, "schema_version": 3, "activations_only": judged}


def _advice(judged: dict[str, Any]) -> str:
    said = []
    if judged.get("calibration") is not None:
        said.append(f"other ranges (calibration.activations={judged['calibration']})")
    if judged.get("sixteen_bits"):
        said.append(f"16 bits for {', '.join(judged['sixteen_bits'])}")
    if not judged.get("calibration_passes"):
        said.append("range-learning QAT")
    return f"{' or '.join(said)} may"


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}
"""By the schema that each takes; it returns the next one."""


def _checked(path: Path, values: Any) -> RunResult:
    """Return the result, or say which field does not fit."""
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, int) or version not in (*UPGRADES, SCHEMA_VERSION):
        message = (
            f"{path} has schema_version {version}, this qatflow reads up to {SCHEMA_VERSION}; "
            "rebuild the report with the qatflow that made the run, whose version is in environment.json"
        )
        raise RunFolderError(message)
    try:
        return RunResult.model_validate_json(json.dumps(upgraded(values)))
    except ValidationError as error:
        raise _no_result(path, said_of(error)) from error
    except (AttributeError, TypeError, LookupError, ValueError, RecursionError) as error:
        raise _no_result(path, str(error)) from error


def _no_result(path: Path, why: str) -> RunFolderError:
    fix = "start the run again on this folder, which writes it anew"
    return RunFolderError(f"{path} is not a qatflow result ({why}); {fix}")
