"""On which processors a file's integers are exact.

An x86 processor with AVX2 or AVX-512 but without VNNI multiplies unsigned by signed bytes in pairs whose sum it holds
in 16 bits: large products saturate. Signed weights stored as unsigned bytes around 128, or of at most 7 bits, do not.
With VNNI, and on ARM, both forms are exact, and signed weights are faster with VNNI. Source: "Quantize ONNX models",
"When and why do I need to try U8U8?", in ONNX Runtime's documentation.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any, Literal

import torch

Storage = Literal["int8", "uint8"]

EVERYWHERE = "every processor"
WITH_DOT_PRODUCTS = "ARM and x86 with VNNI; x86 with AVX2 or AVX-512 alone saturates"


def _capabilities() -> dict[str, Any]:
    """Return what PyTorch knows of the processor; an old PyTorch knows nothing."""
    return getattr(torch.cpu, "get_capabilities", dict)()


@cache
def saturates() -> bool:
    """Tell whether this machine's products of unsigned and signed bytes may saturate."""
    found = _capabilities()
    x86 = str(found.get("architecture", platform.machine())).lower() in ("x86_64", "amd64", "x86")
    return x86 and not any(found.get(name) for name in ("avx_vnni", "avx512_vnni", "avx10_1"))


def processor_name() -> str:
    """Name this machine's processor and what it has for products of bytes."""
    found = _capabilities()
    has = [name for name in ("avx2", "avx512_f", "avx_vnni", "avx512_vnni", "amx_int8") if found.get(name)]
    name = str(found.get("cpu_name") or platform.machine())
    return f"{name} ({', '.join(has)})" if has else name


def weights_stored_as(asked: Literal["auto", "int8", "uint8"], bits: int) -> Storage:
    """Return how signed weights are stored: as asked; by `auto` as unsigned where signed ones would saturate here."""
    if asked != "auto":
        return asked
    return "uint8" if saturates() and bits > 7 else "int8"


def exact_on(storage: Storage, bits: int) -> str:
    """Say on which processors a file with weights of `bits`, stored so, computes what the simulation does."""
    return EVERYWHERE if storage == "uint8" or bits <= 7 else WITH_DOT_PRODUCTS
