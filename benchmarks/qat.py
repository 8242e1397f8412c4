"""Quantization-aware training: what a step costs, what it recovers, whether that is foretold, what the search is worth.

    python -m benchmarks.qat --part steps                      # time and memory of a step, as ratios to FP32's
    python -m benchmarks.qat --part steps --device cuda
    python -m benchmarks.qat --part recovery                   # accuracy by learning rate, bits and start
    python -m benchmarks.qat --part recovery --out DIR --models mobilenet --bits w4a4 --rates 1e-4 --tools qatflow
    python -m benchmarks.qat --part forecast --out DIR         # what is forecast, beside what is recovered
    python -m benchmarks.qat --part search --out DIR           # Optuna beside the guide's fixed recommendation

With `--out` every row goes to `DIR/PART.csv` as soon as it is there, and `recovery` and `forecast` leave out what is in
their file already: take another folder for another version of the code. `search` needs a folder for its study. AIMET is
measured where it is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from benchmarks import mnist_networks, qat_forecast, qat_recovery, qat_search, qat_steps, qat_variants

Row = dict[str, object]
TOOLS = "qatflow,aimet"


def main() -> None:
    """Carry out a part, write its rows and print them."""
    arguments = _arguments()
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    {"steps": steps, "recovery": recovery, "forecast": forecast, "search": search}[arguments.part](arguments)


def steps(arguments: argparse.Namespace) -> None:
    """Time training steps and weigh their memory."""
    works = [
        qat_variants.Work(model, arguments.batch, arguments.size, arguments.device)
        for model in _chosen(arguments.models, qat_variants.MODELS)
    ]
    tools = _chosen(arguments.tools, TOOLS.split(","))
    rows: list[Row] = []
    for found in qat_steps.rows(works, tools, arguments.repeats, arguments.memory):
        rows += found
        _write(arguments.out, "steps", rows)
        print(markdown(found), flush=True)


def recovery(arguments: argparse.Namespace) -> None:
    """Train at low bits, and show test accuracy by learning rate."""
    runs = qat_recovery.runs(
        _chosen(arguments.models, mnist_networks.NETWORKS),
        _chosen(arguments.bits, qat_recovery.BITS),
        _chosen(arguments.starts, qat_recovery.STARTS),
        _chosen(arguments.ranges, ("learning", "frozen")),
        [float(rate) for rate in arguments.rates.split(",")],
        _chosen(arguments.tools, TOOLS.split(",")),
        epochs=arguments.epochs or 15,
        seed=arguments.seed,
        iterations=arguments.iterations,
    )
    rows = [row for row in _read(arguments.out, "recovery") if "test" in row]  # AIMET may be there this time
    done = {_key(row) for row in rows}
    for number, run in enumerate(runs, 1):
        if _key(vars(run)) in done:
            continue
        rows.append(qat_recovery.row_of(run))
        _write(arguments.out, "recovery", rows)
        print(f"{number} of {len(runs)}: {rows[-1]}", flush=True)
    asked = {_key(vars(run)) for run in runs}
    print(markdown(qat_recovery.by_rate([row for row in rows if _key(row) in asked])))


def forecast(arguments: argparse.Namespace) -> None:
    """Forecast what training recovers at low bits, train, and show both."""
    models, bits = _chosen(arguments.models, mnist_networks.NETWORKS), _chosen(arguments.bits, qat_recovery.BITS)
    starts = _chosen(arguments.starts, qat_recovery.STARTS)
    asked = list(product(models, bits, starts, [arguments.epochs or 15]))
    found = {
        tuple(row[name] for name in ("model", "bits", "start", "epochs")): row
        for row in _read(arguments.out, "forecast")
    }
    for start in asked:
        if start not in found:
            found[start] = qat_forecast.row_of(*start)
            _write(arguments.out, "forecast", [*found.values()])
            print(found[start], flush=True)
    drops = [float(drop) for drop in arguments.drops.split(",")]
    print(markdown(qat_forecast.shown([found[start] for start in asked], drops)))


def search(arguments: argparse.Namespace) -> None:
    """Run the study, and show the recommendation beside its best trial."""
    folder = arguments.out / "search-run"
    rows = qat_search.rows(folder, arguments.trials, arguments.epochs, arguments.seed)
    trials = qat_search.trials_of(folder)
    _write(arguments.out, "search", trials)
    print(markdown(trials))
    print(markdown(rows))


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a table for people; a column that some rows lack is empty there."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


KEY = ("model", "bits", "start", "ranges", "rate", "tool", "epochs", "seed", "iterations")


def _key(row: Row) -> tuple[str, ...]:
    """Return what makes a run the same as another; `iterations` tells nothing of qatflow."""
    return tuple("" if name == "iterations" and row["tool"] == "qatflow" else str(row[name]) for name in KEY)


def _read(folder: Path | None, part: str) -> list[Row]:
    if folder is None or not (path := folder / f"{part}.csv").exists():
        return []
    table = pd.read_csv(path, dtype={"iterations": "Int64"})
    return [{name: value for name, value in row.items() if not pd.isna(value)} for row in table.to_dict("records")]


def _write(folder: Path | None, part: str, rows: Sequence[Row]) -> None:
    """Replace a part's file by these rows at once, so that an interruption never leaves half of it."""
    if folder is None:
        return
    path = folder / f"{part}.csv"
    unfinished = path.with_suffix(".unfinished")
    pd.DataFrame(rows).to_csv(unfinished, index=False)
    unfinished.replace(path)


def _chosen(text: str, known: Sequence[str] | dict[str, object]) -> list[str]:
    """Return the names in a list with commas, all where it is empty."""
    names = [name for name in text.split(",") if name] or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        message = f"not known: {', '.join(unknown)}; there are {', '.join(known)}"
        raise SystemExit(message)
    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--part", choices=("steps", "recovery", "forecast", "search"), required=True)
    add("--out", type=Path, help="folder for CSV files; default: none")
    add("--tools", default=TOOLS)
    add("--models", default="", help="steps: resnet18,...; recovery, forecast: mobilenet,...; default: all")
    add("--epochs", type=int, help="recovery, forecast: 15 unless given; search: the recipe's unless given")
    add("--seed", type=int, default=0)
    group = parser.add_argument_group("steps")
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    group.add_argument("--batch", type=int, default=16)
    group.add_argument("--size", type=int, default=224)
    group.add_argument("--repeats", type=int, default=7)
    group.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    group = parser.add_argument_group("recovery and forecast")
    group.add_argument("--bits", default="", help=f"some of {','.join(qat_recovery.BITS)}")
    group.add_argument("--rates", default="1e-6,1e-5,1e-4,1e-3")
    group.add_argument("--starts", default="", help=f"some of {','.join(qat_recovery.STARTS)}")
    group.add_argument("--ranges", default="learning", help="learning, frozen, or both with a comma")
    group.add_argument("--iterations", type=int, default=500, help="of AIMET's AdaRound, whose own are 15,000")
    add("--drops", default="0.01,0.002", help="forecast: gates, as allowed drops")
    group = parser.add_argument_group("search")
    group.add_argument("--trials", type=int, default=16)
    arguments = parser.parse_args()
    if arguments.part == "search" and arguments.out is None:
        parser.error("--part search needs --out, a folder for its study")
    return arguments


if __name__ == "__main__":
    main()
