"""Put pydantic's errors into our sentences: path, value, allowed values, near match.

One table from pydantic's error types to sentences. A type that is not in the table gets pydantic's own short message,
never its multi-line text with links.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from qatflow.errors import Mistake, allowed_values

Sentence = Callable[[Any, ErrorDetails, FieldInfo | None], tuple[str, str]]
"""From a value, pydantic's error and the field to a problem and its fix."""

LONGEST = 60
BOUND_WORDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def mistake_of(error: ErrorDetails, root: type[BaseModel], raw: Any, prefix: str = "") -> Mistake:
    """Return the mistake behind one of pydantic's errors.

    Args:
        error: one of `ValidationError.errors()`.
        root: the model that was validated.
        raw: what it was validated from; values are shown as they stand there.
        prefix: path of `root` within the recipe.
    """
    loc = error["loc"]
    found, value = _as_written(raw, loc)
    if error["type"] in {"missing", "extra_forbidden"} and not isinstance(loc[-1], int):
        found = loc
    path = _path(found, prefix)
    parent = _model_at(root, loc[:-1])
    if error["type"] == "extra_forbidden":
        fields = parent.model_fields if parent else ()
        return Mistake(path, "unknown key", allowed_values(str(loc[-1]), fields))
    field = _field_at(root, loc)
    sentence = SENTENCES.get(error["type"], _other)
    return Mistake(path, *sentence(value, error, field))


def shown(value: Any, quote: bool = True) -> str:
    """Return a value as YAML would have it, shortened where it is long; text in quotes if `quote`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and quote:
        text = repr(value)
    elif isinstance(value, (list, tuple)):
        text = f"[{', '.join(shown(item, quote) for item in value)}]"
    else:
        text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _path(loc: tuple[int | str, ...], prefix: str) -> str:
    path = prefix
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _as_written(raw: Any, loc: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], Any]:
    """Follow `loc` as far as the user's own text goes; return how far, and the value there."""
    value = raw
    for depth, part in enumerate(loc):
        inside = isinstance(value, Mapping) and part in value
        inside = inside or (isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value))
        if not inside:
            return loc[:depth], value
        value = value[part]
    return loc, value


def _model_at(root: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    annotation: Any = root
    for part in loc:
        model = _model_in(annotation)
        if model is not None:
            field = model.model_fields.get(str(part))
            annotation = field.annotation if field else None
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            return None
    return _model_in(annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that an annotation is, or holds beside `None` or in `Annotated`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in {Union, types.UnionType, Annotated}:
        return next(filter(None, map(_model_in, get_args(annotation))), None)
    return None


def _field_at(root: type[BaseModel], loc: tuple[int | str, ...]) -> FieldInfo | None:
    names = [str(part) for part in loc if not isinstance(part, int)]
    parent = _model_at(root, tuple(names[:-1]))
    return parent.model_fields.get(names[-1]) if parent and names else None


def _not_a(kind: str) -> Sentence:
    return lambda value, error, field: (f"{shown(value)} is not {kind}", "")


def _too(word: str) -> Sentence:
    def sentence(value: Any, error: ErrorDetails, field: FieldInfo | None) -> tuple[str, str]:
        allowed = _allowed_range(field)
        return f"{shown(value)} is too {word}", f"allowed: {allowed}" if allowed else ""

    return sentence


def _allowed_range(field: FieldInfo | None) -> str:
    """Return `2 to 16`, or `more than 50, at most 100`, from a field's constraints."""
    bounds: dict[str, Any] = {}
    for constraint in _constraints(field.annotation, field.metadata) if field else ():
        bounds |= {name: getattr(constraint, name) for name in BOUND_WORDS if hasattr(constraint, name)}
    if set(bounds) == {"ge", "le"}:
        return f"{bounds['ge']} to {bounds['le']}"
    return ", ".join(f"{BOUND_WORDS[name]} {bound}" for name, bound in bounds.items())


def _constraints(annotation: Any, metadata: list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    """Yield the constraints of a field, also those inside `Annotated[...] | None`."""
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]
    if get_origin(annotation) in {Union, types.UnionType}:
        for inner in get_args(annotation):
            yield from _constraints(inner, ())
    elif get_origin(annotation) is Annotated:
        yield from _constraints(None, annotation.__metadata__)


def _no_option(value: Any, error: ErrorDetails, field: FieldInfo | None) -> tuple[str, str]:
    annotation = field.annotation if field else None
    options = [str(option) for option in get_args(annotation)] if get_origin(annotation) is Literal else []
    return f"{shown(value)} is not an option", allowed_values(str(value), options)


def _no_section(value: Any, error: ErrorDetails, field: FieldInfo | None) -> tuple[str, str]:
    fix = "write its keys below it"
    if isinstance(value, str):
        fix += f"; a named choice goes under `defaults`, as `override /{error['loc'][-1]}: {value}`"
    return f"{shown(value)} is not a section", fix


def _own_words(value: Any, error: ErrorDetails, field: FieldInfo | None) -> tuple[str, str]:
    """A validator of ours said what to write instead."""
    return f"{shown(value)} cannot stand here", str(error.get("ctx", {}).get("error", error["msg"]))


def _missing(value: Any, error: ErrorDetails, field: FieldInfo | None) -> tuple[str, str]:
    if isinstance(error["loc"][-1], int):
        return f"{shown(value)} has too few values", "write [low, high]"
    return "is missing", ""


def _too_many(value: Any, error: ErrorDetails, field: FieldInfo | None) -> tuple[str, str]:
    return f"{shown(value)} has too many values", "write [low, high]"


def _other(value: Any, error: ErrorDetails, field: FieldInfo | None) -> tuple[str, str]:
    return f"{shown(value)} cannot stand here", error["msg"][:1].lower() + error["msg"][1:]


SENTENCES: dict[str, Sentence] = {
    "missing": _missing,
    "literal_error": _no_option,
    "value_error": _own_words,
    "model_type": _no_section,
    "model_attributes_type": _no_section,
    "dict_type": _not_a("a mapping"),
    "tuple_type": _not_a("a list"),
    "too_long": _too_many,
    "greater_than": _too("small"),
    "greater_than_equal": _too("small"),
    "less_than": _too("large"),
    "less_than_equal": _too("large"),
    "int_type": _not_a("an integer"),
    "int_parsing": _not_a("an integer"),
    "int_from_float": _not_a("an integer"),
    "float_type": _not_a("a number"),
    "float_parsing": _not_a("a number"),
    "bool_type": _not_a("true or false"),
    "bool_parsing": _not_a("true or false"),
    "string_type": _not_a("text"),
    "string_pattern_mismatch": _not_a("a name: letters, digits, spaces and ._- only, with / between folders"),
}
