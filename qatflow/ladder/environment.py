"""Where a run ran and how it was asked for: command, versions, machine, and the revision of the user's files."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from qatflow import __version__
from qatflow.recipe import Recipe
from qatflow.recipe.variables import as_written
from qatflow.results import commands
from qatflow.results.store import sha256
from qatflow.users_code import owner_of

DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Origin:
    """How a run was asked for.

    Attributes:
        again: the command that goes on with it.
        recipe_file: where its recipe is written; None where it was made in Python.
    """

    again: str
    recipe_file: Path | None = None


def environment(recipe: Recipe, origin: Origin, device: torch.device, weights: Path | None) -> dict[str, Any]:
    """Return what `environment.json` holds from the beginning.

    Args:
        recipe: the run's.
        origin: how it was asked for.
        device: that it uses.
        weights: the file that the model's weights are from.

    Raises:
        RunFolderError: that file cannot be read any more.
    """
    return {
        "command": commands.own(),
        "directory": str(Path.cwd()),
        "recipe_file": str(origin.recipe_file) if origin.recipe_file is not None else None,
        "qatflow": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory(),
        "device": str(device),
        "gpu": _gpu() if torch.cuda.is_available() else None,
        "seed": recipe.seed,
        "weights": None
        if weights is None
        else {"file": as_written(str(weights), recipe.model.weights), "sha256": sha256(weights)},
        "git_revisions": git_revisions(_users_folders(recipe, origin.recipe_file)),
        "packages": imported_packages(),
    }


def imported_packages() -> dict[str, str]:
    """Return the version of every distribution that something was imported from by now."""
    loaded = {name.partition(".")[0] for name in list(sys.modules)}
    found = {}
    for one in metadata.distributions():
        name = one.metadata["Name"]
        if name and name not in found and (name.replace("-", "_").lower() in loaded or loaded & _top_level(one)):
            found[name] = one.version
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _top_level(one: metadata.Distribution) -> set[str]:
    """Return the names that a distribution is imported by."""
    listed = one.read_text("top_level.txt")
    names = listed.split() if listed is not None else [file.parts[0].partition(".")[0] for file in one.files or ()]
    return {name for name in names if name.isidentifier()}


def _processor() -> str:
    """Return the processor's name, as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory() -> float | None:
    """Return the machine's memory in GiB; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _gpu() -> Mapping[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", DRIVER.read_text(encoding="utf-8")) if DRIVER.exists() else None
    return {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver.group() if driver is not None else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _users_folders(recipe: Recipe, recipe_file: Path | None) -> list[Path]:
    """Return the folders of what the user wrote: the recipe, and the packages that it names functions of."""
    named = (recipe.model.factory, recipe.data.factory, recipe.gate.metric, recipe.qat.loss, recipe.qat.optimizer)
    packages = dict.fromkeys(one.partition(".")[0].partition(":")[0] for one in named if one and ":" in one)
    folders = [folder for package in packages if (folder := _folder_of(package)) is not None]
    return [*([recipe_file.absolute().parent] if recipe_file is not None else []), *folders]


def _folder_of(package: str) -> Path | None:
    """Return the folder of a package or module that is the user's; None of any other."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec is not None else []
    file = next((Path(place) for place in places if place and Path(place).exists()), None)
    if file is None or owner_of(file) != "user":
        return None
    return file if file.is_dir() else file.parent


def git_revisions(folders: Iterable[Path]) -> dict[str, str]:
    """Return the revision of every git checkout that some folders are in.

    Whether files were changed since is not asked: git would run filters and monitors that the checkout itself names.
    """
    found = {}
    for folder in dict.fromkeys(folders):
        root = _git(folder, "rev-parse", "--show-toplevel")
        if root and root not in found:
            found[root] = _git(folder, "rev-parse", "--short=12", "HEAD") or "no commit yet"
    return found


def _git(folder: Path, *arguments: str) -> str:
    """Return what git says; empty where there is no git, or no checkout."""
    git = shutil.which("git")
    if git is None or Path(git).resolve().parent == Path.cwd():  # where Windows looks first
        return ""
    command = [git, "-c", "core.fsmonitor=false", "-c", "safe.bareRepository=explicit", "-C", str(folder), *arguments]
    own = {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env=own)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
