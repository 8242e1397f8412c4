"""What the report says in words: the verdict as a headline, what became of the run, why there was no training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qatflow.report.numbers import MetricFormat, compact
from qatflow.report.recipe_keys import flatten
from qatflow.results.result import CandidateRecord, GateRecord, Note, RunResult, TrialRecord, Verdict, Verification
from qatflow.results.unfinished import unfinished

BADGES = {
    Verdict.MET: "met",
    Verdict.WITHIN_NOISE: "within noise",
    Verdict.MISSED: "missed",
    Verdict.ANOMALOUS: "implausible gain",
    Verdict.BASELINE: "baseline",
}
TITLES = {
    Verdict.MET: "Gate met",
    Verdict.WITHIN_NOISE: "Gate met, within noise",
    Verdict.MISSED: "Gate missed",
    Verdict.ANOMALOUS: "Implausible gain",
    Verdict.BASELINE: "Only FP32 was measured",
}

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MANY_OSCILLATE = 0.005
"""Share of weights that oscillate in an epoch, above which a reader should know."""

CHECK_WORDS = {"verified": "verified", "disagrees": "disagrees with the simulation", "slower": "slower than FP32"}
CHECK_TONES = {"verified": "met", "disagrees": "missed", "slower": "within_noise"}

LONGEST_NOTE = 80
"""Letters of a step's note in a table; the whole of it is in `result.json`."""


def spelt(text: str) -> str:
    """Return a text with its control characters spelt out: they could move a terminal's cursor, set its title, or turn
    the order of letters.
    """
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class Headline(NamedTuple):
    """The first thing a reader sees: a colour, a few words, and a sentence."""

    tone: str
    title: str
    sentence: str


def headline(result: RunResult) -> Headline:
    """Return the run's verdict in words; of a run that did not finish, what became of it and of its best candidate."""
    stopped = unfinished(result)
    if stopped is not None:
        return Headline("failed" if result.status == "failed" else "none", stopped.title, stopped.best)
    verdict, winner = result.verdict, result.winner
    if verdict is None:
        return Headline("none", "No verdict", "No candidate was measured.")
    if verdict is Verdict.WITHIN_NOISE and not result.accurate and not result.too_slow:
        said = (winner.sentence if winner is not None else "") or verdict.sentence
        sentence = f"{said} The gate is strict, so this does not pass."
        return Headline(verdict.value, "Gate missed, within noise", sentence)
    sentence = (winner.sentence if winner is not None else "") or verdict.sentence
    if winner is not None and winner.passed and not result.accurate:
        sentence = "The best candidate meets the gate in simulation; the file exported from it does not."
    if result.too_slow:
        title = f"{TITLES[verdict]}, too slow" if result.accurate else f"{TITLES[verdict]}, and too slow"
        return Headline(Verdict.MISSED.value, title, sentence)
    return Headline(verdict.value, TITLES[verdict], sentence)


def badge(candidate: CandidateRecord) -> str:
    """Return a candidate's verdict in a word or two."""
    word = BADGES[candidate.verdict]
    barred = candidate.verdict is Verdict.WITHIN_NOISE and not candidate.passed
    return f"{word}, not passed" if barred else word


def standing(candidate: CandidateRecord) -> str:
    """Return whether later rungs build on a candidate; empty where the question does not arise."""
    if candidate.stage != "ptq" or candidate.look is not None:
        return ""
    return "kept" if candidate.kept else "left out"


def remark(candidate: CandidateRecord) -> str:
    """Return why a candidate was left out and whether it was measured earlier; of one that was judged, the verdict.

    Empty where there is nothing to say.
    """
    if candidate.look is not None:
        return candidate.sentence
    resumed = "taken from an earlier start" if candidate.resumed else ""
    return "; ".join(filter(None, (candidate.reason, resumed)))


def notes_text(notes: Mapping[str, Note]) -> str:
    """Return what a step counted and measured, in one line."""
    return ", ".join(f"{key.replace('_', ' ')}: {_note(value)}" for key, value in notes.items())


def allowed(gate: GateRecord, form: MetricFormat) -> str:
    """Return the allowed drop as a number, with the recipe's own text where that is relative, and the worst value."""
    said = []
    if gate.max_drop is not None:
        number = form.drop(gate.max_drop)
        said.append(f"{number} ({gate.max_drop_text} of FP32)" if gate.max_drop_text.endswith("%") else number)
    if gate.worst_value is not None:
        said.append(f"{'at least' if gate.higher_is_better else 'at most'} {form.value(gate.worst_value)}")
    return ", ".join(said)


def samples_text(gate: GateRecord) -> str:
    """Return what candidates were chosen and judged on."""
    if gate.chosen_samples is None:
        return f"{gate.samples} samples"
    if gate.chosen_on == "test":
        return f"chosen and judged on {gate.samples} test samples"
    return f"chosen on {gate.chosen_samples} validation samples, judged on {gate.samples} test samples"


def changes(candidate: CandidateRecord) -> str:
    """Return how many samples a candidate lost and gained, `12 / 3`; empty where samples are not right or wrong."""
    return "" if candidate.lost is None else f"{candidate.lost} / {candidate.gained}"


def check_word(found: Verification | None) -> str:
    """Return what came out of running the exported file, in a word or two; empty where it was not run."""
    return CHECK_WORDS[found.verdict] if found is not None else ""


def no_check(result: RunResult, recipe_yaml: str) -> str:
    """Return one sentence on why no exported file was run."""
    if flatten(recipe_yaml).get("export.verify") == "false":
        return "The recipe does not run it (export.verify: false)."
    if result.status == "finished":
        return "No ONNX file was written, so none was run."
    return "None had been run by then."


def no_training(result: RunResult, recipe_yaml: str) -> str:
    """Return one sentence on why a run has no QAT trials."""
    when = flatten(recipe_yaml).get("qat.when")
    if when == "never":
        return "The recipe does not train (qat.when: never)."
    if result.forecast is not None and not result.forecast.worthwhile:
        return "The recipe trains only where the gate may be met by it (qat.when: worthwhile)."
    if when != "always" and result.accurate:
        return "A rung met the gate, so no training was needed."
    if result.status == "finished":
        return "No trial was recorded."
    return "No trial had finished by then."


def oscillation(trials: Sequence[TrialRecord], best: int | None) -> str:
    """Return how many of the best trial's weights oscillated at its end; empty where in no trial many ever did."""
    epochs = [epoch for trial in trials for epoch in trial.history]
    history = next((trial.history for trial in trials if trial.number == best), ())
    if not history or not any(epoch.oscillating > MANY_OSCILLATE or epoch.frozen > 0 for epoch in epochs):
        return ""
    last = history[-1]
    said = f"In its last epoch, {_share(last.oscillating)} of the weights of trial {best}, the best, "
    said += "oscillated between two steps of the grid"
    return f"{said}, and {_share(last.frozen)} were frozen because they had." if last.frozen else f"{said}."


def _share(share: float) -> str:
    return f"{100 * share:.2f} %" if share else "none"


def _note(value: Note) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = compact(value) if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_NOTE else f"{text[:LONGEST_NOTE]}…"
