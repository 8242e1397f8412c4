"""Files touched in the tree to add a step or a target: two each."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

import qatflow

PACKAGE = Path(qatflow.__file__).parent
ROOT = PACKAGE.parent
STEP = '''"""Do nothing."""


def idle(network, config, context):
    """Return the network as it is."""
    return network, {"reason": "it is idle"}
'''
TRIED = """
from qatflow import STEPS, TARGETS, Recipe
from qatflow.ladder.lookup import complete, step_of, target_of
recipe = Recipe(model={"name": "digits_mobilenet"}, data={"name": "digits"}, target="npu", steps={"idle": {"rate": 3}})
assert complete(recipe) == recipe
assert (STEPS["idle"].__name__, step_of("idle").config.__name__, recipe.steps["idle"].rate) == ("idle", "Idle", 3)
assert (TARGETS["npu"].name, target_of("npu").road.packed_int4) == ("npu", False)
print(list(STEPS)[-1], list(TARGETS)[-1])
"""


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_step_and_a_target_are_two_files_each(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "qatflow", ignore=shutil.ignore_patterns("__pycache__")))
    (copy / "steps" / "idle.py").write_text(STEP)
    steps = copy / "recipe" / "steps.py"
    edited(steps, "\n\nSTEP_CONFIGS", "\n\nclass Idle(StepConfig):\n    rate: int = 1\n\n\nSTEP_CONFIGS")
    steps.write_text(steps.read_text().removesuffix("}\n") + '    "idle": Idle,\n}\n')

    table = (copy / "quant" / "targets" / "qnn.py").read_text().replace("QNN = ", "NPU = ").replace('"qnn"', '"npu"')
    (copy / "quant" / "targets" / "npu.py").write_text(table)
    targets = copy / "recipe" / "targets.py"
    new = '    "npu": TargetEntry(about="an accelerator", road=Road(packed_int4=False)),\n}\n\n\ndef can_write'
    edited(targets, "}\n\n\ndef can_write", new)

    for folder in ("conf", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    assert answer(tmp_path, "-c", TRIED) == "idle npu\n"
    line = ("recipe=tiny", "steps=[fold_batch_norms,idle]", "steps.idle.rate=2", "target=npu", "--cfg", "job")
    composed = yaml.safe_load(answer(tmp_path, "-m", "qatflow", *line))
    assert (composed["target"], composed["steps"]) == ("npu", {"fold_batch_norms": {}, "idle": {"rate": 2}})


def answer(folder: Path, *arguments: str) -> str:
    """Return what Python says in a folder whose qatflow is imported."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
