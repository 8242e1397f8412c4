"""What a recipe may name besides our own things: `package.module:name`, of a package that is trusted.

A recipe is data and may come from anyone. So what it may name is a table: constructors of models, metrics, losses and
optimizers of a few well-known packages. Anything else has to be trusted, package by package, by whoever runs the
recipe. Nothing is imported here: a recipe is checked before torch is imported, and the packages that it names import
torch. Whether a name is of the kind that the table says shows when it is imported: `qatflow.tasks.factory`.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qatflow.errors import Mistake, allowed_values, near_match
from qatflow.recipe import names
from qatflow.recipe.sentences import shown

Role = Literal["model", "data", "metric", "loss", "optimizer", "step", "target"]
Kind = Literal[
    "a model's class, or a builder that the package lists",
    "the package's own maker of models",
    "a pretrained model's class",
    "a metric's class",
    "a loss's class",
    "an optimizer's class",
]

OURS = "qatflow"
LIVE = "live"
"""Stands for a package where a recipe names an object of a Python session: `live:ResNet`."""
REMOTE_CODE = "remote_code"
"""Trusted like a package: code that lies beside a model's weights, on a hub or in a folder."""
REMOTE_ARGUMENTS = ("trust_remote_code", "code_revision")
PLACES = re.compile(r".*_(path|dir|file|url)|cache_dir|pretrained_cfg(_overlay)?|proxies|token")
"""Arguments by which a constructor would read or write files, or reach servers, that the recipe chooses."""
OF_PRETRAINED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("pretrained_model_name_or_path", "revision", "subfolder", "variant"), ()),
    **dict.fromkeys(("ignore_mismatched_sizes", "local_files_only", "use_safetensors"), ()),
    **dict.fromkeys(("num_labels", "id2label", "label2id", "problem_type", "add_pooling_layer"), ()),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "return_dict"), ()),
    "attn_implementation": ("eager", "sdpa"),
    **dict.fromkeys(("dtype", "torch_dtype"), ("auto", "float32", "float16", "bfloat16")),
}
"""Arguments of `from_pretrained`, with the values that each may have where not all are allowed; the others fetch code,
kernels or adapters, or say where to."""


@dataclass(frozen=True)
class Opening:
    """Something that every recipe may name.

    Attributes:
        role: what it is for.
        module: where it is, or below it.
        name: in that module alone; where it has NAME, which stands for any, below the module as well.
        kind: what it has to be.
        arguments: those it may be given, with their values, where that is less than all but `PLACES`.
    """

    role: Role
    module: str
    name: str
    kind: Kind
    arguments: Mapping[str, tuple[object, ...]] | None = None

    @property
    def written(self) -> str:
        """How a recipe has it."""
        return f"{self.module}:{self.name}"

    def fits(self, module: str, name: str) -> bool:
        """Tell whether it opens a name of a module."""
        is_there = module == self.module or ("NAME" in self.name and module.startswith(f"{self.module}."))
        return is_there and re.fullmatch(self.name.replace(".", r"\.").replace("NAME", r"\w+"), name) is not None


OPEN = (
    Opening("model", "torchvision.models", "NAME", "a model's class, or a builder that the package lists"),
    Opening("model", "timm", "create_model", "the package's own maker of models"),
    Opening("model", "timm.models", "NAME", "a model's class, or a builder that the package lists"),
    Opening("model", "transformers", "NAME.from_pretrained", "a pretrained model's class", OF_PRETRAINED),
    Opening("metric", "torchmetrics", "NAME", "a metric's class"),
    Opening("loss", "torch.nn", "NAME", "a loss's class"),
    Opening("loss", "timm.loss", "NAME", "a loss's class"),
    Opening("optimizer", "torch.optim", "NAME", "an optimizer's class"),
    Opening("optimizer", "timm.optim", "NAME", "an optimizer's class"),
    Opening("optimizer", "transformers", "NAME", "an optimizer's class"),
)
"""All that a recipe may name without being trusted, besides the names in our own tables."""
PACKAGES = frozenset(opening.module.split(".")[0] for opening in OPEN)
OWN: dict[Role, Iterable[str]] = {
    "model": names.MODELS,
    "data": names.DATASETS,
    "metric": names.METRICS,
    "loss": names.LOSSES,
    "optimizer": names.OPTIMIZERS,
}


def is_outside(name: object) -> bool:
    """Tell `package.module:name` from a name of ours."""
    return isinstance(name, str) and ":" in name


def package_of(written: str) -> str:
    """Return the top package of `package.module:name`."""
    return written.split(":")[0].split(".")[0]


def is_trusted(written: str, trust: Iterable[str]) -> bool:
    """Tell whether the package of `package.module:name` is trusted."""
    package = package_of(written)
    return package in trust and package not in (OURS, REMOTE_CODE)


def opening_of(written: str, role: Role) -> Opening | None:
    """Return what opens `package.module:name` to every recipe; None where nothing does."""
    module, _, name = written.partition(":")
    if any(part.startswith("_") for part in (*module.split("."), *name.split("."))):
        return None
    return next((one for one in OPEN if one.role == role and one.fits(module, name)), None)


def form_mistakes(path: str, written: str, what: str = "function") -> Iterator[Mistake]:
    """Tell whether something is not written as `package.module:name`."""
    module, _, name = written.partition(":")
    if not all(part.isidentifier() for part in (*name.split("."), *module.split("."))):
        yield Mistake(path, f"{shown(written)} names no {what}", f"write it as package.module:{what}")


def trust_mistakes(path: str, written: str, trust: Iterable[str], role: Role) -> Iterator[Mistake]:
    """Tell whether `package.module:name` is neither open to every recipe nor of a trusted package."""
    package = package_of(written)
    if package == OURS:
        own = OWN.get(role, ())
        fix = f"write the name alone; {allowed_values(written.rpartition(':')[2], own)}" if own else "write another one"
        yield Mistake(path, f"{shown(written)} is within qatflow, whose own things go by their names", fix)
    elif is_trusted(written, trust):
        return
    elif opening_of(written, role) is None:
        problem, hint = f"{shown(written)} is not open to every recipe", ""
        if package not in PACKAGES:
            problem = f"the package {shown(package)} is not trusted"
            hint = near_match(package, {package_of(one.module) for one in OPEN if one.role == role})
        yield Mistake(path, problem, f"{hint or trusting('it', package)}{open_to_all(role)}")
    elif _shadows(package):
        problem = f"the folder {Path.cwd()} has a {package!r} of its own, which would be taken for the well-known one"
        yield Mistake(path, problem, f"rename it, or install {package}; {trusting('what lies here', package)}")


def trusting(what: str, package: str) -> str:
    """Return how to trust a package."""
    return f"if you trust {what}, add trust=[{shown(package, quote=False)}] on the command line"


def open_to_all(role: Role) -> str:
    """Return what every recipe may name for something, as the end of a sentence; empty where that is nothing."""
    article = "an" if role == "optimizer" else "a"
    listed = ", ".join(opening.written for opening in OPEN if opening.role == role)
    return f"; open to all for {article} {role}: {listed}" if listed else ""


def argument_mistakes(
    path: str, written: str, kwargs: Mapping[str, Any], trust: Iterable[str], role: Role
) -> Iterator[Mistake]:
    """Tell of arguments with which something that is open to every recipe would do more than make its object.

    Args:
        path: where the arguments stand in the recipe.
        written: `package.module:name`.
        kwargs: its arguments.
        trust: top packages that are trusted, and `REMOTE_CODE`.
        role: what it is for.
    """
    package, opening = package_of(written), opening_of(written, role)
    if is_trusted(written, trust) or opening is None:
        return
    for name, value in kwargs.items():
        place, may, fix = f"{path}.{name}", opening.arguments, trusting("this recipe", package)
        values = (None if PLACES.fullmatch(name) else ()) if may is None else may.get(name)
        if name in REMOTE_ARGUMENTS:
            if value and REMOTE_CODE not in trust:
                yield Mistake(place, "would run code that lies beside the weights", trusting("it", REMOTE_CODE))
        elif values is None:
            problem = f"no recipe may say this to {shown(written, quote=False)} without trust"
            yield Mistake(place, problem, f"a checkpoint is model.weights; {fix}" if role == "model" else fix)
        elif values and value not in values:
            allowed = allowed_values(str(value), map(str, values))
            yield Mistake(place, f"{shown(value)} is not an option", f"{allowed}; {fix}")


def package_mistakes(path: str, written: str, trust: Iterable[str], role: Role) -> Iterator[Mistake]:
    """Tell whether `package.module:name` is not trusted or its package is not there, without importing it."""
    package = package_of(written)
    if package == LIVE:
        if LIVE not in trust:
            problem = f"{shown(written)} was an object of a Python session, which no command line has"
            yield Mistake(path, problem, "call qatflow.quantize with folder=FOLDER again, or name a factory")
        return
    mistakes = list(trust_mistakes(path, written, trust, role))
    yield from mistakes
    if not mistakes and not lies_here(package) and _installed(package) is None:
        fix = "install it, or run qatflow in the folder that holds it"
        yield Mistake(path, f"the package {shown(package)} is not installed", fix)


def outside_mistakes(
    path: str, written: str, trust: Iterable[str], role: Role, what: str = "function"
) -> list[Mistake]:
    """Return what is wrong with `package.module:name`, as far as it shows without importing it."""
    return list(form_mistakes(path, written, what)) or list(package_mistakes(path, written, trust, role))


def lies_here(package: str) -> bool:
    """Tell whether a package lies in the current directory."""
    return _here(package) is not None


def _here(package: str) -> importlib.machinery.ModuleSpec | None:
    return importlib.machinery.PathFinder.find_spec(package, [str(Path.cwd())])


def _installed(package: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None


def _shadows(package: str) -> bool:
    """Tell whether a package would be imported from the current directory."""
    here, found = _here(package), _installed(package)
    return here is not None and (found is None or found.origin == here.origin)
