"""AIMET's own files of one small model (convolution, ReLU, flatten, linear), in each version."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden"
READABLE = ("0.6.1", "1.0.0", "2.0.0", "2.1.0")
WRITABLE = ("0.6.1", "1.0.0", "2.0.0")
MODEL = FOLDER / "m_2.0.0.onnx"


def golden_path(version: str) -> Path:
    return FOLDER / f"m_{version}.encodings"


def golden(version: str) -> dict[str, Any]:
    return json.loads(golden_path(version).read_text(encoding="utf-8"))


def entry_of(content: dict[str, Any], name: str) -> dict[str, Any]:
    """The first entry of a tensor, to look at or to damage."""
    for section in ("encodings", "activation_encodings", "param_encodings"):
        entries = content.get(section, [])
        if isinstance(entries, dict) and name in entries:
            return entries[name][0]
        if isinstance(entries, list):
            found = [entry for entry in entries if entry["name"] == name]
            if found:
                return found[0]
    raise KeyError(name)
