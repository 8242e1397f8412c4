"""Hydra as qatflow uses it, and the only file that knows its private parts.

Hydra stops at the first option or file that is not there, in words that send a newcomer to `+key`. The loader here
puts an empty option in the place of each and notes it, so that one composition finds all that is wrong with the choices
of a command line, of a recipe, and of what that builds on.

Recipes form the group `recipe` but lie in folders of their own, so they are found here; a recipe is always `_global_`.
The groups `steps` and `target` are made from the tables of those names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra._internal.utils import get_args_parser as get_args_parser
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from qatflow.door.files import GROUP, TABLES, built_of, load_recipe, shipped
from qatflow.door.plain_values import unresolved
from qatflow.errors import Mistake, RecipeError, allowed_values
from qatflow.recipe import Data, Model, Recipe
from qatflow.recipe.limits import link_problem
from qatflow.recipe.sentences import shown
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.recipe.yaml_file import yaml_text

PACKAGE = "_global_"
VERSION_BASE = "1.3"
PRIMARY = "config"
RESOLVED = re.compile(r"\$\{[^}]*:")
"""What OmegaConf looks up by a resolver, such as `${oc.env:HOME}`."""
HYDRA = "hydra"
"""The node of Hydra's own settings."""
USERS = "command-line"
"""What Hydra calls a folder that `--config-dir` names."""
MOST_VISITS = 1_000
"""Of options, on the way to one config."""
ENDLESS = f"its defaults lead back to themselves, or to more than {MOST_VISITS:,} other options"
"""Which of both depends on how deep a process may recurse, which libraries change."""
SOURCES = {"defaults": [{"override /model": "digits_mobilenet"}, {"override /data": "digits"}]}
"""What stands for a recipe that cannot be read, so that the rest can still be checked."""


@cache
def groups() -> frozenset[str]:
    """Return the names of all groups that a command line or a recipe may choose from."""
    return frozenset({folder.name for folder in shipped("conf").iterdir() if folder.is_dir()} | {GROUP, *TABLES})


@dataclass
class Findings:
    """What was wrong on the way to one composed config. Hydra copies what holds it, and it stays one."""

    bare: int = 0
    """What cannot be composed of recipes, and is left out: 1 their defaults and what they tell Hydra, 2 all."""
    mistakes: dict[str, Mistake] = field(default_factory=dict)
    """By the config that they are in."""
    absent: set[str] = field(default_factory=set)
    lists: dict[str, Any] = field(default_factory=dict)
    """Lists in a recipe where a section belongs: OmegaConf cannot merge them, and the recipe check tells."""

    def __deepcopy__(self, memo: object) -> Findings:
        return self

    @property
    def broken(self) -> frozenset[str]:
        """The groups whose choice is a mistake that has been told."""
        return groups() if self.bare else frozenset(path.rpartition("/")[0] for path in {*self.absent, *self.mistakes})


class OptionFiles(FileConfigSource):
    """A user's folder of options, whose files are looked through before Hydra builds anything of them."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Return an option.

        Raises:
            RecipeError: the file cannot be read, or holds more than any option.
        """
        path = Path(self.path) / self._normalize_file_name(config_path)
        yaml_text(path)
        with built_of(path):
            return super().load_config(config_path)


class Options(ConfigRepository):
    """All options there are, and those that stand in for others."""

    def __init__(self, path: ConfigSearchPath, recipes: Mapping[str, Path]) -> None:
        super().__init__(path)
        self.recipes = recipes
        self.found = Findings()

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        super().initialize_sources(config_search_path)
        self.sources = [OptionFiles(one.provider, one.path) if one.provider == USERS else one for one in self.sources]

    def load_config(self, config_path: str) -> ConfigResult | None:
        group, _, name = config_path.rpartition("/")
        if group == GROUP and name in self.recipes:
            return self._given(config_path, self._recipe(name))
        if group in TABLES and ":" in name:
            return self._given(config_path, {"steps": {name: {}}} if group == "steps" else {"target": name})
        if config_path in self.found.absent:
            return self._given(config_path, {})
        try:
            return super().load_config(config_path)
        except RecipeError as error:
            self.found.mistakes[config_path] = error.mistakes[0]
            return self._given(config_path, {})

    def _given(self, path: str, mapping: Any) -> ConfigResult:
        node = mapping if isinstance(mapping, DictConfig) else OmegaConf.create(mapping)
        defaults = self._create_defaults_list(path, self._extract_defaults_list(path, node))
        return ConfigResult("qatflow", path, node, {"package": PACKAGE}, defaults)

    def _recipe(self, name: str) -> DictConfig:
        """Return a recipe without what cannot be composed."""
        try:
            node = load_recipe(self.recipes[name])
        except RecipeError as error:
            self.found.mistakes[name] = error.mistakes[0]
            return OmegaConf.create(SOURCES)
        for key in [key for key in node if key in Recipe.model_fields]:
            if isinstance(node._get_node(key), ListConfig):
                self.found.lists[str(key)] = OmegaConf.to_container(node.pop(key))
        if self.found.bare:
            kept = [str(key) for key in node if key not in ("defaults", "hydra")] if self.found.bare == 1 else []
            return OmegaConf.masked_copy(node, kept)
        return node

    def _create_defaults_list(self, config_path: str, defaults: ListConfig) -> list[InputDefault]:
        """Read the defaults of a config; what a recipe's or a user's option's cannot mean is told, and left out."""
        if self.is_users(config_path) and isinstance(defaults, ListConfig):
            where = config_path.replace(f"{GROUP}/", f"{GROUP} ")
            items: Any = OmegaConf.to_container(defaults)
            kept: list[Any] = []
            for item in items:
                mistakes = list(self._mistakes_in(item, where))
                self.found.mistakes |= {f"{where}: {mistake}": mistake for mistake in mistakes}
                kept += [] if mistakes else [item]
            defaults = OmegaConf.create(kept)
        return list(super()._create_defaults_list(config_path, defaults))

    def _mistakes_in(self, item: Any, where: str) -> Iterator[Mistake]:
        """Tell of an entry of defaults that speaks to Hydra, reads the environment, or names what cannot be."""
        for written, value in item.items() if isinstance(item, dict) else [(item, None)]:
            name, _, package = str(written).split(" ")[-1].partition("@")
            group = name.lstrip("/")
            is_override = str(written).startswith("override") and (group != name or where.startswith(GROUP))
            if HYDRA in (group.split("/")[0], package.split(".")[0]):
                yield _said_to_hydra(where)
            elif RESOLVED.search(f"{written} {value}"):
                problem = "a `${...:...}` is looked up before anything is checked"
                yield Mistake(f"defaults of {where}", problem, "write the name")
            elif group == GROUP:
                fix = "to build on another recipe, write its name alone: `- quickstart`"
                yield Mistake(f"defaults of {where}", "a recipe cannot choose one", fix)
            elif isinstance(value, bool):
                fix = "quote words such as off, on, yes and no: YAML reads them as true and false"
                yield Mistake(f"defaults of {where}", f"{shown(value)} is not an option of {group}", fix)
            elif is_override and not self.group_exists(group):
                known = allowed_values(group, sorted(groups() - {GROUP}))
                yield Mistake(f"defaults of {where}", f"there is no group {group!r}", known)

    def is_users(self, config_path: str) -> bool:
        """Tell whether a config is a recipe, or lies in a user's `--config-dir`."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        return config_path.startswith(f"{GROUP}/") or (source is not None and source.provider == USERS)

    def _find_object_source(self, config_path: str, object_type: ObjectType | None) -> ConfigSource | None:
        """Return where a config or group is; Hydra's own and the tree itself are not looked for in a user's folder.

        A path that leaves the folders of options leads nowhere: it could name any file of the machine.
        """
        if is_elsewhere(config_path):
            return None
        if config_path != PRIMARY and config_path.split("/")[0] != HYDRA:
            return super()._find_object_source(config_path, object_type)
        for source in (one for one in self.sources if one.provider != USERS):
            if (source.is_config if object_type is ObjectType.CONFIG else source.is_group)(config_path):
                return source
        return None

    def group_exists(self, config_path: str) -> bool:
        return config_path == GROUP or super().group_exists(config_path)

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        more = {GROUP: self.recipes, "": [GROUP]}.get(group_name, [])
        wanted = results_filter in (None, ObjectType.CONFIG if group_name else ObjectType.GROUP)
        return sorted({*super().get_group_options(group_name, results_filter), *(more if wanted else [])})


class Visited(CachingConfigRepository):
    """Options that are counted on the way to one config: those that build on two others each never end."""

    def __init__(self, repo: CachingConfigRepository) -> None:
        self.delegate, self.cache = repo.delegate, repo.cache  # Hydra's own constructor would copy all options
        self.visits = 0

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return an option.

        Raises:
            HydraException: too many were looked at before.
        """
        self.visits += 1
        if self.visits > MOST_VISITS:
            raise ConfigCompositionException(ENDLESS)
        return super().load_config(config_path)


class Loader(ConfigLoaderImpl):
    """Hydra's loader, which goes on where an option is missing, knows which steps were chosen, and keeps Hydra's own
    node, with which code could be run, out of the reach of recipes and options.
    """

    def __init__(self, path: ConfigSearchPath, recipes: Mapping[str, Path]) -> None:
        super().__init__(path)
        self.options = self.repository = Options(path, recipes)
        self.selected: tuple[str, ...] = ()
        """The steps that were chosen as options, in order, those listed twice as well."""

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any
    ) -> DictConfig:
        """Compose; a list of steps on the command line means what it says, whatever the recipe's body mentions.

        Raises:
            HydraException: that is impossible, or there are too many `${...}` to look any of them up.
        """
        absent = self.options.found.absent
        while True:
            try:
                cfg = super().load_configuration(config_name, overrides, *args, **kwargs)
            except MissingConfigException as error:
                if error.missing_cfg_file is None or error.missing_cfg_file in absent:
                    raise
                absent.add(str(error.missing_cfg_file))
                continue
            if too_many := link_problem(unresolved(cfg)):
                raise ConfigCompositionException(too_many)
            if any(line.startswith("steps=") for line in overrides) and isinstance(cfg.get("steps"), DictConfig):
                with open_dict(cfg.steps):
                    for step in [step for step in cfg.steps if step not in self.selected]:
                        del cfg.steps[step]
            return cfg

    def _load_single_config(self, default: ResultDefault, repo: Any) -> ConfigResult:
        found = super()._load_single_config(default, repo)
        path = str(default.config_path)
        if HYDRA in found.config and path != PRIMARY and path.split("/")[0] != HYDRA:
            who = path.replace(f"{GROUP}/", f"{GROUP} ")
            self.options.found.mistakes[f"{HYDRA} {who}"] = _said_to_hydra(who)
            del found.config[HYDRA]
        return found

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed, repo = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        return parsed, Visited(repo)

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        steps = [default for default in defaults if str(default.config_path).startswith("steps/")]
        self.selected = tuple(str(one.package or f".{str(one.config_path)[6:]}").partition(".")[2] for one in steps)
        return super()._compose_config_from_defaults_list(defaults, repo)


class Prepared(Hydra):
    """Hydra with a config that has been composed already."""

    prepared: DictConfig | None = None

    def compose_config(self, *args: Any, **kwargs: Any) -> DictConfig:
        """Return what was prepared, and compose where nothing was."""
        return self.prepared if self.prepared is not None else super().compose_config(*args, **kwargs)

    def run_prepared(self, cfg: DictConfig, task: TaskFunction, sweep: Path | None = None) -> Any:
        """Run one job in this process, in a sweep's folder where it is one of a sweep; return what the task does."""
        with read_write(cfg.hydra):
            cfg.hydra.mode = RunMode.RUN
            if sweep is not None:
                cfg.hydra.sweep.dir = str(sweep)
        self.prepared = cfg
        return self.run(PRIMARY, task, []).return_value


def hydra_at(config_dir: Path | None, recipes: Mapping[str, Path]) -> Prepared:
    """Return a Hydra that searches `conf/` and then `config_dir`, as its own command line would; nothing global is."""
    version.setbase(VERSION_BASE)
    store = ConfigStore.instance()
    store.store("base_recipe", base_recipe(), provider="qatflow")
    for name, config in STEP_CONFIGS.items():
        store.store(name, config().model_dump(mode="json"), "steps", f"steps.{name}", "qatflow")
    for name in TABLES["target"]:
        store.store(name, {"target": name}, "target", PACKAGE, "qatflow")
    path = create_config_search_path(str(shipped("conf")))
    if config_dir is not None:
        anchor = SearchPathQuery(provider="schema")
        path.prepend(provider=USERS, path=f"file://{config_dir.absolute()}", anchor=anchor)
    return Prepared("qatflow", Loader(path, recipes))


def _said_to_hydra(who: str) -> Mistake:
    problem = f"{who} says something to Hydra, which no recipe and no option may"
    fix = "drop it; what is meant for Hydra stands on the command line, as in hydra.verbose=true"
    return Mistake(HYDRA, problem, fix)


def is_elsewhere(config_path: str) -> bool:
    """Tell whether a path of an option leaves the folders of options."""
    return ".." in config_path.split("/") or config_path.startswith("/") or "\\" in config_path


def base_recipe() -> dict[str, Any]:
    """Return the defaults of every section, without `steps`: their order is that of first mention."""
    empty = Recipe.model_construct(model=Model.model_construct(), data=Data.model_construct())
    return empty.model_dump(exclude={"steps"})


def with_overrides(cfg: DictConfig, overrides: list[Override], number: int | None) -> None:
    """Enter a job's overrides, and its number in a sweep, where Hydra keeps them."""
    job = cfg.hydra.job
    own = [override for override in overrides if not override.is_hydra_override()]
    cfg.hydra.overrides.task = [override.input_line for override in own]
    dirname = job.config.override_dirname
    job.override_dirname = get_overrides_dirname(own, dirname.exclude_keys, dirname.item_sep, dirname.kv_sep)
    if number is not None:
        with open_dict(cfg):
            job.id = job.num = number
            cfg.hydra.run.dir = "${hydra.sweep.dir}/${hydra.sweep.subdir}"
