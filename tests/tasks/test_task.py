"""What a run's key stands for: everything that its figures depend on, and nothing else."""

from __future__ import annotations

import json
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qatflow.ladder.bench import Bench
from qatflow.ladder.climb import climb
from qatflow.quant.design import Design
from qatflow.quant.prepare import captured_network
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Recipe
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.results.progress import Silent
from qatflow.results.result import CandidateRecord
from qatflow.tasks.task import Task, load_task

MODULE = "taskcase"
TRUST = (MODULE, __name__.partition(".")[0])
METRIC = "def make(power=1):\n    return lambda outputs, target, fp32: (outputs - fp32).abs().mean(1) ** power\n"


class Drawn:
    """Samples with random augmentation by Python's generator, which every process seeds by itself."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        x, y = self.samples[index]
        return x * random.uniform(0.9, 1.1), y


def part(count: int, seed: int) -> list[tuple[Tensor, int]]:
    x = torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    return [(one, int(one.sum() > 0)) for one in x]


def parts(change: Callable[[dict[str, Any]], None] = lambda data: None) -> dict[str, Any]:
    data: dict[str, Any] = {
        "train": Drawn(part(40, 1)),
        "validation": part(60, 2),
        "calibration": part(64, 3),
        "test": part(80, 4),
    }
    change(data)
    return data


def network(slope: float = 0.1, nudge: float = 0.0) -> nn.Module:
    torch.manual_seed(5)
    activation = nn.LeakyReLU(slope) if slope else nn.ReLU()
    model = nn.Sequential(nn.Conv2d(2, 4, 3), activation, nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[4].bias[1] += nudge
    return model.eval()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A package of the user's with a model, data and a metric."""
    made = types.ModuleType(MODULE)
    made.network, made.data = network, parts
    exec(METRIC, vars(made))
    monkeypatch.setitem(sys.modules, MODULE, made)
    return made


def recipe(**changes: Any) -> Recipe:
    settings = {
        "model": {"factory": f"{MODULE}:network"},
        "data": {"factory": f"{MODULE}:data", "batch_size": 16},
        "calibration": {"samples": 24},
        "steps": {"equalize": {}, "adaround": {"samples": 48}},
        "ladder": {"stop": "end", "judge": False},
        "qat": {"when": "never"},
        "device": "cpu",
        **changes,
    }
    return Recipe.model_validate(settings)


class Told(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.records: dict[str, CandidateRecord] = {}
        self.notes: list[str] = []

    def candidate(self, record: CandidateRecord) -> None:
        self.records.setdefault(record.id, record)

    def note(self, text: str) -> None:
        self.notes.append(text)


def ready(folder: Path, settings: Recipe) -> tuple[Bench, Told]:
    """Return a bench on which FP32 was measured."""
    task, told = load_task(settings, TRUST), Told()
    design = Design(TARGETS[settings.target], settings.precision, settings.calibration)
    base = captured_network(task.model, *task.example(), design)
    bench = Bench(settings, task, base, folder, told)
    bench.baseline()
    return bench, told


def climbed(folder: Path, settings: Recipe) -> tuple[Told, dict[str, bool]]:
    """Climb the ladder; returns which candidates an earlier start had done."""
    bench, told = ready(folder, settings)
    climb(bench)
    return told, {name: record.resumed for name, record in told.records.items()}


ALL = {"fp32": True, "naive": True, "equalize": True, "adaround": True}
NONE = dict.fromkeys(ALL, False)


def test_a_second_start_does_nothing_again(tmp_path: Path, module: types.ModuleType) -> None:
    first, done = climbed(tmp_path, recipe())
    assert done == NONE
    second, done = climbed(tmp_path, recipe())
    assert done == ALL and not second.notes
    for name, record in first.records.items():
        assert second.records[name].model_copy(update={"resumed": False}) == record


def relabelled(data: dict[str, Any]) -> None:
    data["test"][40:] = [(x, 1 - y) for x, y in data["test"][40:]]


def one_validation_sample(data: dict[str, Any]) -> None:
    data["validation"][59] = (data["validation"][59][0] + 0.01, data["validation"][59][1])


def calibration_images(data: dict[str, Any]) -> None:
    data["calibration"][35:] = [(x * 1.5, y) for x, y in data["calibration"][35:]]


DATA_CHANGES = [relabelled, one_validation_sample, calibration_images]


@pytest.mark.parametrize("change", DATA_CHANGES)
def test_changed_data_is_noticed(
    change: Callable[[dict[str, Any]], None], tmp_path: Path, module: types.ModuleType
) -> None:
    before, _ = ready(tmp_path, recipe())
    module.data = lambda: parts(change)
    after, told = ready(tmp_path, recipe())
    assert before.key != after.key
    assert bool(told.notes) == (change is not calibration_images), "of evaluation data it is said what differs"
    assert ready(tmp_path, recipe())[0].key == after.key


def test_another_metric_slope_or_weight_is_another_run(tmp_path: Path, module: types.ModuleType) -> None:
    metric = {"metric": f"{MODULE}:make", "direction": "lower"}

    def key(**changes: Any) -> str:
        return ready(tmp_path, recipe(**changes))[0].key

    def model(**kwargs: float) -> dict[str, Any]:
        return {"factory": f"{MODULE}:network", "kwargs": kwargs}

    known = key(gate=metric)
    keys = [known, key(), key(gate={**metric, "metric_kwargs": {"power": 2}})]
    keys += [key(gate=metric, model=model(slope=0.2)), key(gate=metric, model=model(nudge=1e-6))]
    exec(METRIC.replace("abs()", "square()"), vars(module))
    keys.append(key(gate=metric))
    assert len(set(keys)) == len(keys)
    exec(METRIC, vars(module))
    assert key(gate=metric) == known


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"gate": {"max_drop": 0.5, "confidence": 0.9, "strict": True}}, True),
        ({"ladder": {"stop": "gate"}, "qat": {"when": "always"}, "name": "other", "report": {"html": False}}, True),
        ({"data": {"factory": f"{MODULE}:data", "batch_size": 16, "workers": 1}}, True),
        ({"data": {"factory": f"{MODULE}:the_same_data", "batch_size": 16}}, True),
        ({"model": {"factory": f"{MODULE}:network", "final_lr": 1e-3, "kwargs": {"slope": 0.1}}}, True),
        ({"data": {"factory": f"{MODULE}:data", "batch_size": 17}}, False),
        ({"calibration": {"samples": 25}}, False),
        ({"precision": {"weights": 4}}, False),
        ({"target": "qnn"}, False),
        ({"seed": 1}, False),
        ({"gate": {"direction": "lower"}}, False),
    ],
)
def test_settings_count_where_they_matter(
    changes: dict[str, Any], same: bool, tmp_path: Path, module: types.ModuleType
) -> None:
    module.the_same_data = parts
    known = ready(tmp_path, recipe())[0].key
    assert (ready(tmp_path, recipe(**changes))[0].key == known) == same


def test_random_augmentation_of_train_changes_nothing(tmp_path: Path, module: types.ModuleType) -> None:
    tasks = [load_task(recipe(), TRUST) for _ in range(2)]
    assert tasks[0].training_key == tasks[1].training_key
    module.data = lambda: parts(lambda data: data.update(train=Drawn(part(41, 1))))
    assert load_task(recipe(), TRUST).training_key != tasks[0].training_key


@pytest.mark.parametrize("name", ["calibration", "test"])
def test_a_part_that_is_compared_may_not_be_random(name: str, tmp_path: Path, module: types.ModuleType) -> None:
    module.data = lambda: parts(lambda data: data.update({name: Drawn(data[name])}))
    keys = set()
    for _ in range(2):
        bench, told = ready(tmp_path, recipe())
        keys.add(bench.key)
        (note,) = told.notes
        assert f"the {name} part come out otherwise" in note
    assert len(keys) == 1


@pytest.mark.parametrize("section", ["loss", "optimizer"])
def test_code_of_loss_and_optimizer_counts_for_training_only(
    section: str, tmp_path: Path, module: types.ModuleType
) -> None:
    text = "def train(*args):\n    return {value}\n"
    keys = []
    for value in (1, 2):
        exec(text.format(value=value), vars(module))
        settings = recipe(qat={"when": "never", section: f"{MODULE}:train"})
        keys.append((ready(tmp_path, settings)[0].key, load_task(settings, TRUST).training_key))
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]


def test_every_calibration_sample_that_a_step_takes_is_in_the_key(
    tmp_path: Path, module: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: set[int | None] = set()
    before = Task.calibration_inputs

    def noting(self: Task, limit: int | None) -> Any:
        taken.add(limit)
        return before(self, limit)

    monkeypatch.setattr(Task, "calibration_inputs", noting)
    with_samples = [name for name, config in STEP_CONFIGS.items() if "samples" in config.model_fields]
    steps = {name: {"samples": 40 + number} for number, name in enumerate(with_samples)}
    settings = recipe(
        model={"factory": f"{MODULE}:network", "kwargs": {"slope": 0.0}},
        steps={"equalize": {}, "absorb_bias": {}, "smooth": {}, **steps},
        ladder={"stop": "end", "judge": True},
        precision={"weights": 3, "activations": 3},
    )
    climbed(tmp_path, settings)
    assert {24, 32, 40, 41} <= taken
    assert taken <= load_task(settings, TRUST).calibration_limits()


def negate(folder: Path) -> str:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: -value for name, value in weights.items()}, folder / "model.safetensors")
    return "model.safetensors is not what was written there"


def truncate(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    return "model.safetensors is not what was written there"


def another_scale(folder: Path) -> str:
    stored = json.loads((folder / "encodings.json").read_text())
    next(one for one in stored["tensors"].values() if one["axis"] is None)["scale"] *= 1.5
    (folder / "encodings.json").write_text(json.dumps(stored))
    return "encodings.json is not what was written there"


def lost(folder: Path) -> str:
    (folder / "graph.json").unlink()
    return "graph.json is missing"


def without_digests(folder: Path) -> str:
    (folder / "meta.json").write_text((folder / "meta.json").read_text().replace('"files"', '"file"'))
    return "files: field required"


def half_written(folder: Path) -> str:
    path = folder / "meta.json"
    path.write_text(path.read_text()[:-20])
    return "damaged"


@pytest.mark.parametrize("damage", [negate, truncate, another_scale, lost, without_digests, half_written])
def test_a_candidate_whose_files_were_changed_is_done_anew(
    damage: Callable[[Path], str], tmp_path: Path, module: types.ModuleType
) -> None:
    first, _ = climbed(tmp_path, recipe())
    said = damage(tmp_path / "candidates" / "equalize")
    second, done = climbed(tmp_path, recipe())
    assert done == {**ALL, "equalize": False}
    (note,) = second.notes
    assert said in note and note.endswith("doing that rung anew")
    assert second.records["equalize"].value == first.records["equalize"].value
    assert climbed(tmp_path, recipe())[1] == ALL


def test_rungs_on_a_recalled_one_are_those_on_a_fresh_one(tmp_path: Path, module: types.ModuleType) -> None:
    settings = recipe(precision={"weights": 4}, steps={"adaround": {"samples": 48}, "correct_bias": {"samples": 48}})
    (tmp_path / "fresh").mkdir()
    climbed(tmp_path / "fresh", settings)
    climbed(tmp_path / "again", settings)
    (tmp_path / "again" / "candidates" / "correct_bias" / "meta.json").unlink()
    assert climbed(tmp_path / "again", settings)[1]["correct_bias"] is False
    for name in ("model.safetensors", "encodings.json", "graph.json"):
        one, other = (tmp_path / folder / "candidates" / "correct_bias" / name for folder in ("fresh", "again"))
        assert one.read_bytes() == other.read_bytes(), name
