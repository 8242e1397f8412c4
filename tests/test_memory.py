"""How much memory a process may take, as the machine, control groups of both versions and its own limits tell."""

from pathlib import Path

import pytest

from qatflow.results import memory

MIB = 2**20


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of `/`, whose machine has 1,000 MiB available."""
    for name, text in {
        "meminfo": "MemTotal: 9 kB\nMemAvailable:  1024000 kB\n",
        "self/status": "VmRSS:\t 2048 kB\n",
    }.items():
        write(tmp_path / "proc" / name, text)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_the_machine_alone(system: Path) -> None:
    assert memory.room() == 1000 * MIB
    assert memory.taken() == 2 * MIB
    assert memory.peak() is None


def test_a_group_of_version_2_and_one_above_it(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/batch/job\n")
    write(system / "groups/batch/job/memory.max", "max\n")
    write(system / "groups/batch/job/memory.current", f"{90 * MIB}\n")
    write(system / "groups/batch/memory.max", f"{100 * MIB}\n")
    write(system / "groups/batch/memory.current", f"{90 * MIB}\n")
    assert memory.room() == 10 * MIB
    write(system / "groups/batch/memory.stat", f"anon 5\ninactive_file {20 * MIB}\nactive_file {4 * MIB}\n")
    assert memory.room() == 34 * MIB, "pages of files are given back"


def test_a_group_of_version_1_that_the_container_sees_as_its_root(system: Path) -> None:
    write(system / "proc/self/cgroup", "5:cpu:/docker/1\n4:memory:/docker/1\n0::/\n")
    write(system / "groups/memory/memory.limit_in_bytes", f"{100 * MIB}\n")
    write(system / "groups/memory/memory.usage_in_bytes", f"{120 * MIB}\n")
    assert memory.room() == 0, "more is taken than may be"


def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    assert (memory.room(), memory.taken(), memory.forget_peak()) == (None, None, False)
