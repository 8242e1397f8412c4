"""Hydra's launcher plugins: a sweep whose jobs run in processes of their own ends as one that runs here."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from qatflow.door import composing
from qatflow.door.command_line import for_hydra
from qatflow.door.composing import plan, recipe_of
from qatflow.door.hydra_parts import hydra_at
from qatflow.errors import RecipeError
from qatflow.report.read import read_result
from tests.test_unfinished import ROOT, settings


def sweep(folder: Path, *lines: str) -> "subprocess.CompletedProcess[str]":
    """Sweep over a recipe in `folder`, with its runs in `folder/sweep`."""
    (folder / "recipes").mkdir()
    (folder / "recipes" / "mine.yaml").write_text(yaml.safe_dump(settings(), sort_keys=False))
    argv = ["-m", "--config-dir", str(folder), "recipe=mine", "trust=[tests]", f"hydra.sweep.dir={folder / 'sweep'}"]
    command = [sys.executable, "-m", "qatflow", *argv, *lines]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)


def test_a_plugins_jobs_are_those_that_were_checked() -> None:
    lines = ["recipe=quickstart_qat,tiny", "steps=[fold_batch_norms],[fold_batch_norms,adaround]", "+seed=3"]
    lines += ["model.kwargs.width=2", "precision=w8a8,w4a4", "steps.fold_batch_norms={}"]
    checked = plan(lines, multirun=True)
    loader = checked.hydra.config_loader
    given = [*map(for_hydra, checked.overrides), "hydra.mode=MULTIRUN"]
    master = loader.load_configuration("config", given, RunMode.MULTIRUN)
    parser = OverridesParser.create(config_loader=loader)
    task = parser.parse_overrides(list(master.hydra.overrides.task))
    (batch,) = BasicSweeper.split_arguments(task, None)
    recipes = []
    for overrides in batch:
        cfg = loader.load_sweep_config(master, list(overrides))
        HydraConfig.instance().set_config(cfg)
        recipes.append(recipe_of(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), ()))
    HydraConfig.instance().cfg = None
    assert len(recipes) == 8
    assert recipes == [job.recipe for job in checked.jobs]


@pytest.mark.slow
def test_a_sweep_by_joblib_ends_as_one_of_ours(tmp_path: Path) -> None:
    done = sweep(tmp_path, "data.kwargs.what='',test:raise", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    assert done.returncode == 1, done.stderr
    assert [read_result(tmp_path / "sweep" / job).status for job in "01"] == ["finished", "failed"]
    table = pd.read_csv(tmp_path / "sweep" / "summary.csv")
    assert list(table["status"]) == ["finished", "failed"]
    assert "1 of 2 runs met the gate, 1 did not finish" in (tmp_path / "sweep" / "summary.html").read_text()
    names = ", ".join(f"{tmp_path}/sweep/{name}" for name in ("summary.csv", "runtimes.csv", "summary.html"))
    assert done.stdout.endswith(f"sweep    {names}\n")
    assert done.stderr.count("sample 20 is corrupt") == 1


def test_a_launcher_that_is_not_installed_is_an_option_that_is_not_there(tmp_path: Path) -> None:
    done = sweep(tmp_path, "hydra/launcher=jobli", "seed=1,2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "hydra/launcher: 'jobli' is not an option; did you mean 'joblib'? allowed: basic, joblib" in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_a_sweeper_that_wants_another_optuna_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin itself cannot be installed beside qatflow; its option and what it declares can be there."""
    hydra_at(None, {})
    store = ConfigStore.instance()
    monkeypatch.setitem(store.repo["hydra"], "sweeper", {**store.repo["hydra"]["sweeper"]})
    store.store("optuna", {"_target_": "none"}, "hydra/sweeper", "hydra.sweeper", "test")
    monkeypatch.setattr(composing.metadata, "requires", lambda name: ["hydra-core>=1.1", "optuna<3.0.0,>=2.10.0"])
    with pytest.raises(RecipeError) as error:
        plan(["recipe=tiny", "seed=1,2", "hydra/sweeper=optuna"], multirun=True)
    assert [str(mistake) for mistake in error.value.mistakes] == [
        f"hydra/sweeper: optuna: hydra-optuna-sweeper needs optuna<3.0.0,>=2.10.0, and optuna "
        f"{metadata.version('optuna')} is installed; search with qatflow's own, as in qat.when=always search=standard, "
        "or sweep, as in -m seed=1,2,3"
    ]
