"""Tables of pages that tests make: what a page promises is what its tests have seen.

A page marks the place with `<!-- made by tests: NAME -->` and `<!-- end -->`. `QATFLOW_UPDATE_GOLDEN=1` writes it anew.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def check_table(page: str, name: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Check that a page has a table with these rows, in this order."""
    lines = [_line(heads), _line(["---"] * len(heads)), *map(_line, rows)]
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- made by tests: {name} -->", "<!-- end -->"
    found = re.search(f"{re.escape(begin)}\n(.*?){end}", text, flags=re.DOTALL)
    assert found, f"{page} has no place for the table {name}: write {begin} and {end}"
    wanted = "\n".join(["", *lines, "", ""])
    if os.environ.get("QATFLOW_UPDATE_GOLDEN") == "1":
        path.write_text(text[: found.start(1)] + wanted + text[found.end(1) :], encoding="utf-8")
    assert found[1] == wanted or os.environ.get("QATFLOW_UPDATE_GOLDEN") == "1", f"{page}: {name} is not up to date"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
