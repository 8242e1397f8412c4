"""Libraries of a compiler that was killed: those that are not whole are removed, all others stay."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from qatflow.quant.compiled_files import remove_half_written
from tests.pages import ROOT

KERNEL = """
import torch
from qatflow.quant import fused

kernels = fused.kernels("cpu")
assert isinstance(kernels, fused.Kernels), kernels
bounds = torch.tensor([[0.5], [-8.0], [7.0], [-9.0], [9.0]])
print(kernels.forward(torch.full((1, 20000), 1.3), bounds)[0].unique().tolist())
"""


def elf(sections: int = 2, size: int | None = None) -> bytes:
    header = struct.pack("<4sB35xQ10xHH2x", b"\x7fELF", 2, 100, 64, sections)
    return (header + bytes(36 + 64 * sections))[:size]


def cache(folder: Path, content: bytes) -> Path:
    (folder / "locks").mkdir(exist_ok=True)
    path = folder / "ab" / "cabc.main.so"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [b"", b"\x7fELF", bytes(500), elf(size=227), elf(size=64)])
def test_half_a_library_is_removed(content: bytes, tmp_path: Path) -> None:
    path = cache(tmp_path, content)
    assert remove_half_written(tmp_path) == [path]
    assert not path.exists()


@pytest.mark.parametrize("content", [elf(), elf() + b"more", b"\xcf\xfa\xed\xfe" + bytes(100)])
def test_a_whole_one_and_one_of_another_system_stay(content: bytes, tmp_path: Path) -> None:
    path = cache(tmp_path, content)
    assert remove_half_written(tmp_path) == []
    assert path.read_bytes() == content


def test_one_that_is_being_compiled_is_left_alone(tmp_path: Path) -> None:
    path = cache(tmp_path, b"")
    with FileLock(tmp_path / "locks" / "cabc.lock"):
        assert remove_half_written(tmp_path) == []
    assert remove_half_written(tmp_path) == [path]


def test_a_cache_that_is_not_there_yet(tmp_path: Path) -> None:
    assert remove_half_written(tmp_path / "none") == []


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libraries are ELF files on Linux")
def test_kernels_are_compiled_anew_where_the_compiler_was_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    first = subprocess.run([sys.executable, "-c", KERNEL], env=environment, capture_output=True, check=True)
    libraries = sorted(tmp_path.glob("*/*.so"))
    assert libraries
    for library in libraries:
        library.write_bytes(library.read_bytes()[:-100])
    second = subprocess.run([sys.executable, "-c", KERNEL], env=environment, capture_output=True, check=True)
    assert second.stdout == first.stdout == b"[1.5]\n"
