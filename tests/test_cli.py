"""The command line: exit codes, run folders, sweeps, and what is said to whom."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qatflow.door import cli
from qatflow.door.command_line import read_flags
from qatflow.door.composing import plan
from qatflow.door.files import find_recipes
from qatflow.door.hydra_parts import Loader
from qatflow.door.launching import Session
from qatflow.errors import StepError
from qatflow.ladder.environment import Origin
from qatflow.recipe import Recipe
from qatflow.results.progress import Progress
from qatflow.results.result import CandidateRecord, GateRecord, RunResult, Verdict

GATE = GateRecord(
    metric="accuracy",
    higher_is_better=True,
    max_drop=0.01,
    max_drop_text="0.01",
    strict=False,
    confidence=0.95,
    samples=9,
)
MET, DEFECT, MISTAKE, INTERRUPTED, MISSED, TERMINATED, USERS = range(7)
"""What the stand-in for the engine does, by `seed`."""


class StandIn:
    """The engine, replaced: notes what it is asked and does what the seed says."""

    def __init__(self) -> None:
        self.recipes: list[Recipe] = []
        self.origins: list[Origin] = []
        self.folders: list[Path] = []
        self.trust: list[tuple[str, ...]] = []
        self.sweeps: list[tuple[Path, list[Path]]] = []

    def new_folder(self, name: str) -> Path:
        return Path("reports") / name / "new"

    def run(
        self, recipe: Recipe, folder: Path, trust: tuple[str, ...], progress: Progress, origin: Origin
    ) -> RunResult:
        self.recipes.append(recipe)
        self.origins.append(origin)
        self.folders.append(folder)
        self.trust.append(trust)
        (folder / "export").mkdir(parents=True, exist_ok=True)
        (folder / "report.html").touch()
        progress.stage("under way")
        stopped = result("running", passed=False, command=origin.again)
        (folder / "result.json").write_text(stopped.model_copy(update={"status": "failed"}).model_dump_json())
        if recipe.seed == DEFECT:
            exec(compile("raise RuntimeError('a defect')", cli.__file__, "exec"))
        if recipe.seed == USERS:
            raise RuntimeError("a user's")
        if recipe.seed == MISTAKE:
            raise StepError("this step cannot run")
        if recipe.seed == INTERRUPTED:
            raise KeyboardInterrupt
        if recipe.seed == TERMINATED:
            signal.raise_signal(signal.SIGTERM)
        return result("finished", passed=recipe.seed != MISSED)

    def write_sweep(self, folder: Path, runs: Sequence[Path]) -> list[Path]:
        self.sweeps.append((folder, list(runs)))
        return [folder / "summary.html"]


def result(status: Any, passed: bool, command: str = "") -> RunResult:
    verdict = Verdict.MET if passed else Verdict.MISSED
    row = CandidateRecord(
        id="equalize",
        stage="ptq",
        value=0.97,
        fp32=0.98,
        drop=0.01,
        drop_low=0.0,
        drop_high=0.02,
        verdict=verdict,
        passed=passed,
        sqnr_db=25.0,
        kept=True,
        seconds=1.0,
    )
    return RunResult(
        name="tiny",
        status=status,
        command=command,
        remaining=("adaround", "export"),
        verdict=verdict,
        passed=passed,
        gate=GATE,
        fp32=0.98,
        best="equalize",
        candidates=(row,),
        started="2024-01-01T00:00:00Z",
        seconds=1.0,
    )


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    stand_in = StandIn()
    for name, functions in {"qatflow.api": ("run", "new_folder"), "qatflow.report.sweep": ("write_sweep",)}.items():
        module = types.ModuleType(name)
        for function in functions:
            setattr(module, function, getattr(stand_in, function))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    return stand_in


def process(*argv: str, cwd: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-W", "error", *argv]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.parametrize(
    ("seed", "code"),
    [(MET, 0), (MISSED, 2), (DEFECT, 3), (MISTAKE, 1), (USERS, 1), (INTERRUPTED, 130), (TERMINATED, 143)],
)
def test_exit_codes(engine: StandIn, seed: int, code: int) -> None:
    assert cli.main(["recipe=tiny", f"seed={seed}"]) == code


def test_a_run_says_what_came_out_of_it(engine: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recipe=tiny"])
    assert capsys.readouterr().out.splitlines() == [
        "tiny: everything goes to reports/tiny/new",
        "under way",
        "",
        "Gate met. The candidate is as good as the gate asks.",
        "best     equalize: accuracy 0.9700, FP32 0.9800",
        "drop     0.0100 (0.0000 to 0.0200), allowed 0.01",
        "report   reports/tiny/new/report.html",
        "export   reports/tiny/new/export",
    ]


def test_a_mistake_has_no_traceback_and_a_defect_has_one(engine: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recipe=tiny", f"seed={MISTAKE}"])
    told = capsys.readouterr().err.splitlines()
    assert (told[0], told[2][:35]) == ("error: this step cannot run", "Failed before the gate was decided.")
    cli.main(["recipe=tiny", f"seed={USERS}"])
    told = capsys.readouterr().err
    assert re.match(rf"error: {__file__}:\d+, in run: RuntimeError: a user's\n", told)
    assert "Traceback" not in told
    cli.main(["recipe=tiny", f"seed={DEFECT}"])
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "RuntimeError: a defect\nerror: this is a defect of qatflow's own; please report it" in told


def test_hydra_full_error_shows_the_traceback_of_a_mistake(
    engine: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert cli.main(["recipe=tiny", f"seed={MISTAKE}"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(
    engine: StandIn, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    command = ["--config-dir", "own", "recipe=tiny", "trust=[json]", "gate.label='an F1'", f"seed={INTERRUPTED}"]
    cli.main(command)
    assert capsys.readouterr().err.splitlines() == [
        "stopped by Ctrl-C",
        "",
        "Failed before the gate was decided. Best so far: equalize, accuracy 0.9700 on test, FP32 0.9800, drop 0.0100 "
        "(allowed: 0.01); it has not been judged on the test part.",
        "What remains: adaround, export.",
        "report   reports/tiny/new/report.html",
        f"go on    {shlex.join(['python', '-m', 'qatflow', *command, 'run.dir=reports/tiny/new'])}",
    ]
    assert engine.origins[0].recipe_file == find_recipes()["tiny"]


def test_the_command_that_goes_on_can_be_given(engine: StandIn) -> None:
    cli.main(["recipe=tiny", "run.dir='my runs/a, b'", "seed=9"])
    again = shlex.split(engine.origins[0].again)
    assert again[:3] == ["python", "-m", "qatflow"]
    cli.main(again[3:])
    assert engine.folders == [Path("my runs/a, b")] * 2
    assert engine.origins[0] == engine.origins[1]


def test_sigterm_is_handled_as_before_afterwards(engine: StandIn) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cli.main(["recipe=tiny", f"seed={TERMINATED}"])
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_that_is_not_the_main_one_can_run(engine: StandIn) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["recipe=tiny"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_run_dir_and_trust_reach_the_engine(engine: StandIn, tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    argv = ["recipe=tiny", "run.dir=mine", "trust=[json]", "model.name=null", "model.factory=json:loads"]
    assert cli.main([*argv, "model.weights=w.pt"]) == 0
    assert engine.folders == [Path("mine")]
    assert engine.trust == [("json",)]
    assert engine.recipes[0].model.weights == str(tmp_path / "w.pt")
    assert engine.recipes[0].name == "tiny"


def test_flags_may_stand_anywhere(engine: StandIn) -> None:
    assert cli.main(["recipe=tiny", "-m", "precision=w8a8,w4a8"]) == 0
    assert [recipe.precision.weights for recipe in engine.recipes] == [8, 4]


def test_hydra_leaves_nothing_behind(engine: StandIn, tmp_path: Path) -> None:
    cli.main(["recipe=tiny"])
    left = ["export", "new", "report.html", "reports", "result.json", "tiny"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == left


@pytest.mark.parametrize(
    ("seeds", "code"),
    [
        ((MET, MET), 0),
        ((MET, MISSED), 2),
        ((MISSED, DEFECT, MISTAKE), 3),
        ((MISTAKE, MISSED), 1),
        ((MET, INTERRUPTED, MET), 130),
    ],
)
def test_a_sweep(engine: StandIn, tmp_path: Path, seeds: tuple[int, ...], code: int) -> None:
    assert cli.main(["-m", "recipe=tiny", f"seed={','.join(map(str, seeds))},9"]) == code
    done = [*seeds, 9] if INTERRUPTED not in seeds else list(seeds[: seeds.index(INTERRUPTED) + 1])
    folders = [tmp_path / "reports" / "sweep" / "new" / str(index) for index in range(len(done))]
    assert [recipe.seed for recipe in engine.recipes] == done
    assert engine.folders == folders
    assert engine.sweeps == [(Path("reports/sweep/new"), folders)]


def test_a_sweep_goes_where_it_is_told(engine: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-m", "recipe=tiny", f"seed=0,{INTERRUPTED}", "hydra.sweep.dir=here"]) == 130
    assert engine.sweeps == [(Path("here"), [tmp_path / "here" / "0", tmp_path / "here" / "1"])]
    said = capsys.readouterr()
    assert said.out.endswith("sweep    here/summary.html\n")
    jobs, sweep = [line for line in said.err.splitlines() if line.startswith("go on ")]
    assert jobs == f"go on    python -m qatflow recipe={tmp_path}/here/1/recipe.yaml run.dir={tmp_path}/here/1"
    assert sweep == f"go on    python -m qatflow -m recipe=tiny seed=0,{INTERRUPTED} hydra.sweep.dir=here"


def test_a_sweep_over_steps_drops_options_of_steps_left_out(engine: StandIn) -> None:
    cli.main(["-m", "recipe=quickstart_qat", "steps=[fold_batch_norms],[fold_batch_norms,adaround]"])
    assert [list(recipe.steps) for recipe in engine.recipes] == [["fold_batch_norms"], ["fold_batch_norms", "adaround"]]


def test_a_summary_that_cannot_be_written_is_told_and_changes_no_outcome(
    engine: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise StepError("no space left")

    monkeypatch.setattr(sys.modules["qatflow.report.sweep"], "write_sweep", fail)
    assert cli.main(["-m", "recipe=tiny", f"seed=0,{MISSED}"]) == 2
    assert "error: no space left" in capsys.readouterr().err


def test_mistakes_are_told_before_anything_runs(engine: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-m", "recipe=tiny", "precision=w8a8,w8a9", "seed=x"]) == 1
    assert engine.recipes == []
    assert capsys.readouterr().err.startswith("error: the recipe has 2 mistakes:\n  - ")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--foo", "recipe=tiny"], "--foo: unknown flag"),
        (["--cfg", "jobs"], "command line: cannot be read"),
        (["--config-dir", "nowhere"], "--config-dir: there is no folder 'nowhere'"),
        (["--config-name", "x", "recipe=tiny"], "--config-name: is not supported"),
        (["--experimental-rerun", "x.pkl"], "--experimental-rerun: is not supported"),
        (["--cfg", "job", "-m", "recipe=tiny"], "flags: only one of --run, --multirun, --cfg and --info"),
        (["--cfg", "job"], "recipe: none is given"),
        (["--info", "defaults"], "recipe: none is given"),
    ],
)
def test_wrong_flags_are_errors_and_not_a_missed_gate(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 1
    assert sentence in capsys.readouterr().err


def test_no_arguments_list_the_recipes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("description: all my own\n")
    (tmp_path / "recipes" / "broken.yaml").write_text("a: [\n")
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    assert "  tiny            the shortest complete run" in listed
    assert "Exit codes: 0 gate met, 2 gate missed" in listed
    assert cli.main(["--config-dir", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert "  mine            all my own" in listed
    assert f"  broken          {tmp_path}/recipes/broken.yaml, line 2: cannot be read" in listed


def test_help_names_flags_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--cfg job" in shown
    assert "steps        absorb_bias, adaround, calibrate, correct_bias, equalize, fold_batch_norms" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("qatflow ")


def test_cfg_job_shows_the_complete_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--cfg", "job", "recipe=quickstart_qat", "steps=[fold_batch_norms]"]) == 0
    shown = capsys.readouterr().out
    for section in Recipe.SECTIONS:
        assert f"\n{section}:\n" in shown
    assert shown.endswith("steps:\n  fold_batch_norms: {}\n")


def test_arguments_of_a_factory_may_be_given_as_one_mapping(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--cfg", "job", "recipe=tiny", "model.kwargs={width: 3, deep: true}"]) == 0
    assert "  kwargs:\n    width: 3\n    deep: true\n" in capsys.readouterr().out


@pytest.mark.parametrize("flag", [["--info", "defaults"], ["--hydra-help"]])
def test_hydras_own_flags_work(flag: list[str], tmp_path: Path) -> None:
    shown = process("-m", "qatflow", *flag, "recipe=tiny", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout


def test_tab_completion_knows_the_recipes_of_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("defaults: [tiny]\n")
    for typed, answer in {
        f"qatflow --config-dir {tmp_path} recipe=m": "recipe=mine\n",
        "qatflow recipe=tiny steps=ad": "steps=adaround\n",
        "qatflow rec": "recipe=\n",
    }.items():
        monkeypatch.setenv("COMP_LINE", typed)
        assert cli.main(["-sc", "query=bash"]) == 0
        assert capsys.readouterr().out == answer


def test_a_job_returns_its_drop_to_hydra(engine: StandIn) -> None:
    checked = plan(["recipe=tiny"])
    (job,) = checked.jobs
    session = Session(read_flags(["recipe=tiny"]), [(job.recipe, job.file)])
    assert checked.hydra.run_prepared(job.cfg, session) == 0.01


def test_a_sweep_that_cannot_start_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Session, "__call__", stop)
    (tmp_path / "0").mkdir()
    assert cli.main(["-m", "recipe=tiny", "seed=1,2", "hydra.sweep.subdir=../../../${hydra.job.num}"]) == 130
    assert [path.name for path in tmp_path.rglob("*")] == ["0", "reports"]


@pytest.mark.parametrize(
    ("argv", "compositions"),
    [
        (["recipe=tiny", "seed=9"], 1),
        (["recipe=tiny", "--cfg", "job"], 1),
        (["-m", "recipe=tiny", "seed=0,9", "precision=w8a8,w4a8"], 2),
    ],
)
def test_what_is_chosen_is_composed_once(
    engine: StandIn, argv: list[str], compositions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[object] = []
    compose = Loader._compose_config_from_defaults_list

    def counted(loader: Loader, *args: Any, **kwargs: Any) -> Any:
        composed.append(loader)
        return compose(loader, *args, **kwargs)

    monkeypatch.setattr(Loader, "_compose_config_from_defaults_list", counted)
    assert cli.main(argv) == 0
    assert len(composed) == compositions


def test_argv_is_left_alone(engine: StandIn) -> None:
    before = list(sys.argv)
    cli.main(["recipe=tiny"])
    assert sys.argv == before


QUICK = """
import sys, time
started = time.perf_counter()
from qatflow.door.cli import main
code = main(sys.argv[1:])
print("torch" in sys.modules, code, time.perf_counter() - started)
"""


@pytest.mark.parametrize(
    "argv", [[], ["--help"], ["recipe=quikstart", "precision.weights=1"], ["recipe=tiny", "--cfg", "job"]]
)
def test_answers_come_quickly_and_without_torch(argv: list[str], tmp_path: Path) -> None:
    answer = process("-c", QUICK, *argv, cwd=tmp_path).stdout.splitlines()[-1].split()
    assert answer[0] == "False"
    assert answer[1] == ("1" if "recipe=quikstart" in argv else "0")
    assert float(answer[2]) < 5  # about 0.6 s on an idle machine


def test_python_m_qatflow(tmp_path: Path) -> None:
    listed = process("-m", "qatflow", cwd=tmp_path)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "\x1b" not in listed.stdout
    wrong = process("-m", "qatflow", "recipe=tiny", "precision.weights=1", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.endswith("  - precision.weights: 1 is too small; allowed: 2 to 16\n")


@pytest.mark.slow
def test_a_whole_run_and_its_resumption(tmp_path: Path) -> None:
    command = ["-m", "qatflow", "recipe=tiny", "run.dir=mine", "gate.max_drop=1"]
    first = process(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "Gate met." in first.stdout
    for name in ("recipe.yaml", "result.json", "results.csv", "report.html", "export", "log.txt"):
        assert (tmp_path / "mine" / name).exists()
    started = time.perf_counter()
    again = process(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "(resumed)" in again.stdout
    assert time.perf_counter() - started < 120
    same = process("-m", "qatflow", "recipe=mine/recipe.yaml", "run.dir=other", cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    values = [json.loads((tmp_path / name / "result.json").read_text())["candidates"] for name in ("mine", "other")]
    assert [row["value"] for row in values[0]] == [row["value"] for row in values[1]]


@pytest.mark.slow
def test_a_missed_gate_in_a_whole_run(tmp_path: Path) -> None:
    missed = process("-m", "qatflow", "recipe=tiny", "precision=w2a4", "gate.max_drop=0", cwd=tmp_path)
    assert missed.returncode == 2, missed.stderr
    assert "Gate missed." in missed.stdout
    (folder,) = (tmp_path / "reports" / "tiny").iterdir()
    assert (folder / "export").exists()


@pytest.mark.slow
def test_a_whole_sweep(tmp_path: Path) -> None:
    swept = process("-m", "qatflow", "-m", "recipe=tiny", "precision=w8a8,w4a8", "gate.max_drop=1", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    (folder,) = (tmp_path / "reports" / "sweep").iterdir()
    assert {"0", "1"} <= {path.name for path in folder.iterdir()}
