"""Where a run ran: versions, machine, and the revision of the user's project."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from qatflow import __version__

PACKAGES = ("torch", "torchvision", "timm", "transformers", "hydra-core", "optuna", "pandas", "numpy", "safetensors")


def environment(device: str, seed: int) -> dict[str, Any]:
    """Return what `environment.json` holds.

    Args:
        device: name of the device that the run uses.
        seed: the recipe's.
    """
    return {
        "qatflow": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "device": device,
        "seed": seed,
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git_revision": _git_revision(Path.cwd()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name, as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git_revision(folder: Path) -> str | None:
    """Return the revision of the git checkout that `folder` is in; None where it is in none."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
