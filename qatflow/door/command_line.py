"""argv read: flags as Hydra has them, and overrides with Hydra's own parser, one list for each job.

Hydra has one grammar for choosing an option of a group (`precision=w4a8`), setting a value (`seed=1`), adding, removing
and sweeping. Where its `+` only asks the user to confirm that a key is new, none is needed here: whether a key may be
new is the recipe check's business.
"""

from __future__ import annotations

import itertools
import math
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, RangeSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qatflow.door.files import GROUP
from qatflow.door.hydra_parts import get_args_parser, groups
from qatflow.errors import Mistake, RecipeError
from qatflow.recipe.limits import line_mistakes, value_mistakes
from qatflow.recipe.sentences import shown

OWN_TREE = ("config_name", "config_path", "experimental_rerun")
OPEN_SECTIONS = ("model.kwargs.", "data.kwargs.", "gate.metric_kwargs.", "precision.overrides.", "steps.")
"""Arguments of users' own functions, names of layers, and options of steps: any key may be new there."""
UNREADABLE = (HydraException, OmegaConfBaseException, ValueError, ArithmeticError)
"""What Hydra raises of a line that is not in its grammar."""
MOST_JOBS = 1_000
"""Of one sweep."""
USERS_STEP = re.compile(r"(?P<sign>[+~]*)steps\.(?P<name>[\w.]+:\w+)(?P<rest>[^=]*)(?P<value>.*)", re.DOTALL)
"""An override of an option of a step that a user wrote: Hydra's grammar has no colon in keys."""


@dataclass(frozen=True)
class Flags:
    """What a command line says besides its overrides."""

    hydra: Namespace
    """As Hydra's own parser gives them."""
    config_dir: Path | None
    trust: tuple[str, ...]
    overrides: list[str]

    @property
    def multirun(self) -> bool:
        """Whether it asks for a sweep."""
        return self.hydra.multirun or "hydra.mode=MULTIRUN" in self.overrides


def read_flags(argv: Sequence[str]) -> Flags:
    """Read flags as Hydra does, but let overrides stand on both sides of them.

    Raises:
        RecipeError: a flag is unknown or not supported, or has a value that it cannot have.
    """
    try:
        args, unknown = get_args_parser().parse_known_intermixed_args(list(argv))
    except SystemExit as error:  # argparse itself would exit with 2
        raise RecipeError([Mistake("command line", "cannot be read", "see --help")]) from error
    mistakes = [Mistake(flag, "unknown flag", "see --help; values are given as key=value") for flag in unknown]
    for name in OWN_TREE:
        if getattr(args, name) is not None:
            mistakes.append(Mistake(f"--{name.replace('_', '-')}", "is not supported", "use --config-dir and recipe="))
    folder = Path(args.config_dir) if args.config_dir is not None else None
    if folder is not None and not folder.is_dir():
        mistakes.append(Mistake("--config-dir", f"there is no folder {args.config_dir!r}"))
    if sum(map(bool, (args.run, args.multirun, args.cfg, args.info))) > 1:
        mistakes.append(Mistake("flags", "only one of --run, --multirun, --cfg and --info can be given"))
    if mistakes:
        raise RecipeError(mistakes)
    return Flags(args, folder, *take_trust(args.overrides))


def take_trust(lines: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the packages named in `trust=[...]` and the other overrides: Hydra sees none, so no recipe can set it."""
    trust: list[str] = []
    rest: list[str] = []
    for line in lines:
        found = re.fullmatch(r"\+{0,2}trust=\[?([^\[\]]*)\]?", line)
        if found:
            trust += [name.strip(" '\"") for name in found[1].split(",") if name.strip()]
        else:
            rest.append(line)
    return tuple(trust), rest


@dataclass
class Overrides:
    """What the overrides of a command line say, and what of it cannot be read."""

    read: list[Override] = field(default_factory=list)
    jobs: list[list[Override]] = field(default_factory=list)
    """One list for a run; one per job for a sweep. The values that a sweeper plugin chooses are in none."""
    files: dict[str, Path] = field(default_factory=dict)
    """Recipes given as `recipe=some/file.yaml`, by the names they got."""
    mistakes: list[Mistake] = field(default_factory=list)


def is_choice(override: Override) -> bool:
    """Tell an override that chooses an option of a group from one that sets a value."""
    return override.key_or_group.split("/")[0] in groups() and not isinstance(override.value(), dict)


def for_hydra(override: Override) -> str:
    """Return the line for Hydra itself, with `+` where it asks for one.

    Raises:
        RecipeError: its grammar has no place for the key.
    """
    line = str(override.input_line)
    if USERS_STEP.fullmatch(line):
        raise RecipeError([Mistake(override.key_or_group, "is a key that Hydra cannot read", "write it in the recipe")])
    if is_choice(override):
        return line[1:] if override.type is OverrideType.ADD else line
    if override.type is OverrideType.ADD:
        return f"+{line}"
    is_open = override.type is OverrideType.CHANGE and f"{override.key_or_group}.".startswith(OPEN_SECTIONS)
    return f"++{line}" if is_open else line


def read_overrides(lines: Sequence[str], loader: ConfigLoader, multirun: bool) -> Overrides:
    """Parse overrides; what cannot be read is told and left out."""
    found = Overrides()
    parser = OverridesParser.create(config_loader=loader)
    for line in lines:
        too_much = list(line_mistakes(shown(line.partition("=")[0], quote=False), line))
        if too_much:
            found.mistakes += too_much
            continue
        try:
            override = _parsed(parser, line, found.files)
        except UNREADABLE:
            found.mistakes.append(_unreadable(line))
            continue
        found.mistakes += value_mistakes(override.key_or_group, override.value())
        if override.is_sweep_override() and not multirun:
            text = override.get_value_string()
            fix = f"add -m to run one after the other, or write [{text}] for a list"
            found.mistakes.append(Mistake(override.key_or_group, f"{text} is several values", fix))
        else:
            found.read.append(override)
    found.jobs = _jobs(found, parser) if multirun else [found.read]
    return found


def _parsed(parser: OverridesParser, line: str, files: dict[str, Path]) -> Override:
    """Parse one override; a user's step gets its place in the key, and a recipe's file a name, afterwards."""
    users = USERS_STEP.fullmatch(line)
    if users is not None:
        stand_in = f"{users['sign']}steps.users_step{users['rest']}{users['value']}"
        override = parser.parse_overrides([stand_in])[0]
        key = override.key_or_group.replace(".users_step", f"[{users['name']}]")
        return replace(override, key_or_group=key, input_line=line)
    override = parser.parse_overrides([line])[0]
    OmegaConf.create([line])  # where Hydra keeps it, a `${` that is not closed cannot stand
    if override.key_or_group != GROUP or ".yaml" not in line:
        return override
    values = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
    names = [_named(str(getattr(value, "text", value)), files) for value in values]
    return parser.parse_overrides([f"{GROUP}={','.join(names)}"])[0]


def _named(recipe: str, files: dict[str, Path]) -> str:
    """Return the name of a recipe, where it is a file that of the file."""
    if not recipe.endswith(".yaml"):
        return recipe
    path = Path(recipe)
    name = re.sub(r"\W+", "_", str(path.with_suffix(""))).strip("_")
    files[name] = path
    return name


def _unreadable(line: str) -> Mistake:
    key, equals, value = line.partition("=")
    if not equals:
        recipe = f", or {GROUP}={line} if it is a recipe" if line.isidentifier() else ""
        return Mistake(line, "has no value", f"write {line}=VALUE{recipe}")
    fix = "quote text that has special characters, and the whole for the shell: 'key=\"a, b\"'"
    return Mistake(key.strip() or line, f"{shown(value)} cannot be read as a value", fix)


def _jobs(found: Overrides, parser: OverridesParser) -> list[list[Override]]:
    """Return the overrides of each job of a sweep, in the order in which Hydra's own sweeper runs them."""
    plugin = any(one.key_or_group == "hydra/sweeper" and one.value() != "basic" for one in found.read)
    values: dict[str, list[Override]] = {}
    for override in found.read:
        key = str(override.input_line).partition("=")[0]
        if not override.is_sweep_override():
            values[key] = [override]
        elif plugin:
            values.pop(key, None)
        else:
            listed = _listed(override)
            values[key] = []
            for value in listed:
                try:
                    one = _parsed(parser, f"{key}={value}", found.files)
                except UNREADABLE:  # Hydra lists it without the quotes that it had
                    found.mistakes.append(_unreadable(f"{key}={value}"))
                    continue
                found.mistakes += value_mistakes(key, one.value())
                values[key].append(one)
            if not listed:
                problem = f"{override.get_value_string()} does not stand for a list of values"
                found.mistakes.append(Mistake(key, problem, "list them, as in key=1,2,3 or key=range(1,4)"))
                del values[key]
    if math.prod(map(len, values.values())) > MOST_JOBS:
        found.mistakes.append(Mistake("-m", f"asks for more than {MOST_JOBS:,} jobs", "give fewer values"))
        return []
    return [list(job) for job in itertools.product(*values.values())]


def _listed(override: Override) -> list[str]:
    """Return the values that a sweep goes through, as far as they are not too many; none where they are no list."""
    value = override.value()
    try:
        if isinstance(value, RangeSweep):
            override = replace(override, _value=replace(value, shuffle=False)) if _is_long(value) else override
        return list(itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))
    except (HydraException, ValueError, ArithmeticError):  # an interval, or a range without end
        return []


def _is_long(values: RangeSweep) -> bool:
    return sum(1 for _ in itertools.islice(values.range(), MOST_JOBS + 1)) > MOST_JOBS
