"""The overrides of a command line, read with Hydra's own parser and told apart.

Hydra has one grammar for choosing an option of a group (`precision=w4a8`), setting a value (`seed=1`), adding, removing
and sweeping. Where its `+` only asks the user to confirm that a key is new, we put it in ourselves: whether a key may
be new is the recipe check's business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from qatflow.door.config import GROUP, shipped
from qatflow.errors import Mistake

OPEN_SECTIONS = ("model.kwargs.", "data.kwargs.", "gate.metric_kwargs.", "precision.overrides.")
"""Arguments of users' own functions, and names of layers: any key may be new there."""


@dataclass
class CommandLine:
    """What the overrides of one command line say."""

    lines: list[str]
    """As Hydra is to read them."""
    jobs: list[list[Override]]
    """One list for a run; one per job for a sweep whose jobs are known beforehand."""
    mistakes: list[Mistake]
    files: dict[str, Path] = field(default_factory=dict)
    """Recipes given as `recipe=some/file.yaml`, by the names they got."""
    sweeps_itself: bool = False
    """Whether a sweeper plugin chooses the jobs while it runs."""


def groups() -> set[str]:
    """Return the names of all groups."""
    return {folder.name for folder in shipped("conf").iterdir() if folder.is_dir()} | {GROUP}


def is_choice(override: Override) -> bool:
    """Tell an override that chooses an option of a group from one that sets a value."""
    return override.key_or_group.split("/")[0] in groups() and not isinstance(override.value(), dict)


def take_trust(lines: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the packages named in `trust=[...]` and the other overrides.

    Trust is taken out before Hydra sees it, so that no recipe can set it.
    """
    trust: list[str] = []
    rest: list[str] = []
    for line in lines:
        found = re.fullmatch(r"\+{0,2}trust=\[?([^\[\]]*)\]?", line)
        if found:
            trust += [name.strip(" '\"") for name in found[1].split(",") if name.strip()]
        else:
            rest.append(line)
    return tuple(trust), rest


def read(lines: Sequence[str], loader: ConfigLoader, multirun: bool) -> CommandLine:
    """Parse overrides; what cannot be read is told and left out."""
    command = CommandLine([], [], [])
    parser = OverridesParser.create(config_loader=loader)
    parsed: list[Override] = []
    for line in lines:
        try:
            override = parser.parse_overrides([line])[0]
            override = parser.parse_overrides([_for_hydra(override, command.files)])[0]
        except HydraException:
            command.mistakes.append(_unreadable(line))
            continue
        mistake = None if multirun else _unasked_sweep(override)
        if mistake:
            command.mistakes.append(mistake)
        else:
            parsed.append(override)
    command.lines = [str(override.input_line) for override in parsed]
    command.sweeps_itself = any(o.key_or_group == "hydra/sweeper" and o.value() != "basic" for o in parsed)
    try:
        command.jobs = _jobs(parsed, parser, command.sweeps_itself) if multirun else [parsed]
    except HydraException as error:
        command.mistakes.append(Mistake("sweep", str(error).splitlines()[0], "list the values, as in key=1,2,3"))
    return command


def _for_hydra(override: Override, files: dict[str, Path]) -> str:
    """Return the line with `+` where Hydra asks for it, and a recipe's file replaced by its name."""
    line = str(override.input_line)
    if override.key_or_group == GROUP and isinstance(override.value(), str) and str(override.value()).endswith(".yaml"):
        path = Path(str(override.value()))
        name = re.sub(r"\W+", "_", str(path.with_suffix(""))).strip("_")
        files[name] = path
        return f"{GROUP}={name}"
    if override.type is OverrideType.ADD:
        return line[1:] if is_choice(override) else f"+{line}"
    if override.type is OverrideType.CHANGE and f"{override.key_or_group}.".startswith(OPEN_SECTIONS):
        return f"++{line}"
    return line


def _unreadable(line: str) -> Mistake:
    key, equals, value = line.partition("=")
    if not equals:
        recipe = f", or {GROUP}={line} if it is a recipe" if line.isidentifier() else ""
        return Mistake(line, "has no value", f"write {line}=VALUE{recipe}")
    fix = "quote text that has special characters, and the whole for the shell: 'key=\"a, b\"'"
    return Mistake(key.strip() or line, f"{value!r} cannot be read as a value", fix)


def _unasked_sweep(override: Override) -> Mistake | None:
    if not override.is_sweep_override():
        return None
    text = override.get_value_string()
    fix = f"add -m to run one after the other, or write [{text}] for a list"
    return Mistake(override.key_or_group, f"{text} is several values", fix)


def _jobs(parsed: list[Override], parser: OverridesParser, sweeps_itself: bool) -> list[list[Override]]:
    """Return the overrides of each job of a sweep, in the order in which Hydra's own sweeper runs them.

    Raises:
        HydraException: a sweep that only a plugin can enumerate.
    """
    for_hydra = [override for override in parsed if override.is_hydra_override()]
    ours = [override for override in parsed if not override.is_hydra_override()]
    if sweeps_itself:
        return [[override for override in ours if not override.is_sweep_override()]]
    batch = BasicSweeper.split_arguments(ours, None)[0]
    return [[*for_hydra, *parser.parse_overrides(list(job))] for job in batch]
