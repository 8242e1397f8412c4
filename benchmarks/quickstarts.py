"""Do the quickstarts end alike? Every seed on one and two threads, and weights disturbed in their last bit.

    python -m benchmarks.quickstarts
    python -m benchmarks.quickstarts --candidates       # each recipe once as it ships, and the table of its candidates

Rounding in another order, another seed or another processor changes figures a little; what the quickstarts show has to
hold all the same. Prints a row a run, and exits with 1 where runs of one recipe differ in what they ship, in its
verdict or that of its file, or in how many layers of the file run on integers. Rungs are measured on validation, but
the best one, QAT and the file on test, as the gate judges them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from qatflow.results.result import RunResult
from qatflow.tasks.models import shipped_weights

MODELS = {"quickstart": "digits_mobilenet_skewed", "quickstart_qat": "digits_mobilenet_thin"}
"""The recipes, and whose weights they take."""
COLUMNS = (
    "recipe, seed, threads, weights, naive, folded, best rung, QAT, file, verdict, file's verdict, on integers, seconds"
)
CANDIDATE_COLUMNS = "candidate, measured on, accuracy, drop, interval, verdict"


@dataclass(frozen=True)
class Variant:
    """One way to run a recipe."""

    recipe: str
    seed: int
    threads: int
    disturbed: bool


def variants(recipes: list[str], seeds: list[int], threads: list[int]) -> Iterator[Variant]:
    """Yield every seed on every number of threads, and with the first seed disturbed weights."""
    for recipe, count in itertools.product(recipes, threads):
        yield from (Variant(recipe, seed, count, disturbed=False) for seed in seeds)
        yield Variant(recipe, seeds[0], count, disturbed=True)


def disturbed(model: str, folder: Path, seed: int = 0) -> Path:
    """Write a model's shipped weights, each moved by one in its last bit up or down, and return the file."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, value in load_file(shipped_weights(model)).items():
        if value.is_floating_point():
            up = torch.rand(value.shape, generator=generator) < 0.5
            value = torch.nextafter(value, torch.where(up, torch.inf, -torch.inf).to(value.dtype))
        moved[name] = value
    path = folder / f"{model}.safetensors"
    save_file(moved, path)
    return path


def run(variant: Variant, folder: Path) -> tuple[RunResult, float]:
    """Run a recipe in a process of its own; return its result and the seconds it took.

    Raises:
        RuntimeError: it ended without a verdict.
    """
    command = [sys.executable, "-m", "qatflow", f"recipe={variant.recipe}", f"seed={variant.seed}", "device=cpu"]
    command += [f"run.dir={folder}"]
    if variant.disturbed:
        command.append(f"model.weights={disturbed(MODELS[variant.recipe], folder.parent, variant.seed)}")
    started = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(variant.threads)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 2):
        message = f"{variant} ended with {ended.returncode}: {ended.stderr[-2000:]}"
        raise RuntimeError(message)
    return RunResult.model_validate_json((folder / "result.json").read_text()), time.perf_counter() - started


Outcome = tuple[str, str, str, str]


def outcome(result: RunResult) -> Outcome:
    """Return what has to be the same in every run: what is shipped, its verdict, its file's, and layers on integers."""
    winner, found = result.winner, result.verification
    assert winner is not None
    assert found is not None
    verdict = "" if result.verdict is None else result.verdict.value
    on_integers = f"{found.integer_layers} of {found.layers}"
    (file,) = [one.verdict.value for one in result.candidates if one.stage == "deployed"]
    return winner.id, verdict if result.passed else f"{verdict}, not passed", file, on_integers


def row(variant: Variant, result: RunResult, seconds: float) -> list[str]:
    """Return a run's cells in the order of `COLUMNS`."""

    def value(**wanted: object) -> str:
        found = [one for one in result.candidates if all(getattr(one, key) == cell for key, cell in wanted.items())]
        return "" if not found or found[-1].value is None else f"{found[-1].value:.4f}"

    shipped, verdict, file, on_integers = outcome(result)
    return [
        variant.recipe,
        str(variant.seed),
        str(variant.threads),
        "disturbed" if variant.disturbed else "as they ship",
        value(id="naive", part="validation"),
        value(id="fold_batch_norms", part="validation"),
        value(stage="ptq", part="test"),
        value(stage="qat", part="test"),
        value(stage="deployed"),
        f"{shipped}: {verdict}",
        file,
        on_integers,
        f"{seconds:.0f}",
    ]


def candidate_rows(result: RunResult) -> Iterator[list[str]]:
    """Yield every candidate's cells in the order of `CANDIDATE_COLUMNS`."""
    for one in result.candidates:
        judged = "" if one.look is None or one.stage == "deployed" else f", judged (look {one.look})"
        compared = ["", "", ""]
        if one.stage != "fp32":
            interval = f"{one.drop_low:.4f} to {one.drop_high:.4f}"
            compared = [f"{one.drop:.4f}", interval, one.verdict.value.replace("_", " ")]
        yield [one.id + judged, one.part, f"{one.value:.4f}", *compared]


def print_table(columns: str, rows: Iterable[list[str]]) -> None:
    """Print a Markdown table, each row as soon as it is there."""
    names = columns.split(", ")
    for cells in itertools.chain([names, ["---"] * len(names)], rows):
        print(table_row(cells), flush=True)


def table_row(cells: list[str]) -> str:
    """Return one row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Run all variants, print their table, and tell whether they agree."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quickstarts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--recipes", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--candidates", action="store_true", help="print the candidates of one run instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        if options.candidates:
            for recipe in options.recipes:
                result, seconds = run(Variant(recipe, 0, options.threads[0], disturbed=False), Path(home) / recipe)
                print(f"\n{recipe}, {seconds:.0f} s\n")
                print_table(CANDIDATE_COLUMNS, candidate_rows(result))
            return 0
        outcomes: dict[str, set[Outcome]] = {}
        every = variants(options.recipes, options.seeds, options.threads)
        print_table(COLUMNS, _rows(every, Path(home), outcomes))
    for recipe, found in outcomes.items():
        print(f"\n{recipe}: {'all runs end alike' if len(found) == 1 else f'runs end differently: {sorted(found)}'}")
    return int(any(len(found) > 1 for found in outcomes.values()))


def _rows(every: Iterable[Variant], home: Path, outcomes: dict[str, set[Outcome]]) -> Iterator[list[str]]:
    """Run every variant, yield its row, and collect the outcomes of each recipe."""
    for number, variant in enumerate(every):
        result, seconds = run(variant, home / str(number))
        outcomes.setdefault(variant.recipe, set()).add(outcome(result))
        yield row(variant, result, seconds)


if __name__ == "__main__":
    sys.exit(main())
