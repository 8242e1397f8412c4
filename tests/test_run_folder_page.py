"""`docs/run_folder.md` is the run folder's contract: every field, column and file is in it."""

import inspect
import re
from pathlib import Path

import pytest

from qatflow.report.write import TABLES
from qatflow.results import result, tables
from qatflow.results.result import SCHEMA_VERSION, Record

PAGE = (Path(__file__).parent.parent / "docs" / "run_folder.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([^`\n]+)`", PAGE))
RECORDS = [one for one in vars(result).values() if inspect.isclass(one) and issubclass(one, Record)]
COLUMNS = {"results": tables.RESULTS, "layers": tables.LAYERS, "trials": tables.TRIALS}


def test_the_schema_is_that_of_the_code() -> None:
    assert f"Schema version: **{SCHEMA_VERSION}**" in PAGE
    for version in range(1, SCHEMA_VERSION + 1):
        assert f"\n| {version} | " in PAGE


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_is_explained(record: type[Record]) -> None:
    assert not set(record.model_fields) - NAMED


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_is_listed_in_order(name: str) -> None:
    (listed,) = re.findall(rf"- `{name}\.csv`: (.*?)\.\n", PAGE, flags=re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == list(COLUMNS[name])
    assert f"{name}.csv" in TABLES
