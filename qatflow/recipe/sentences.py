"""Put pydantic's errors into our sentences: path, value, allowed values, near match.

One table from pydantic's error types to sentences; what is allowed is read from the model's JSON schema. A type that is
not in the table gets pydantic's own short message, never its multi-line text with links.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from qatflow.errors import Mistake, allowed_values

Schema = dict[str, Any]
"""The part of a JSON schema that describes one value."""
Sentence = Callable[[Any, ErrorDetails, Schema], tuple[str, str]]
"""From a value, pydantic's error and the schema to a problem and its fix."""

LONGEST = 60
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}


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
    path = prefix
    for part in found:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if error["type"] == "extra_forbidden":
        fields = _schema_at(root, loc[:-1]).get("properties", ())
        return Mistake(path, "unknown key", allowed_values(str(loc[-1]), fields))
    sentence = SENTENCES.get(error["type"], _other)
    return Mistake(path, *sentence(value, error, _schema_at(root, loc)))


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


def _as_written(raw: Any, loc: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], Any]:
    """Follow `loc` as far as the user's own text goes; return how far, and the value there."""
    value: Any = raw
    for depth, part in enumerate(loc):
        inside = isinstance(value, Mapping) and part in value
        if not inside and not (isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value)):
            return loc[:depth], value
        value = value[part]
    return loc, value


def _schema_at(root: type[BaseModel], loc: tuple[int | str, ...]) -> Schema:
    """Return what the schema of `root` says of a place in it; nothing where it says nothing."""
    whole = _schema(root)
    node = whole
    for part in loc:
        items = node.get("prefixItems", ())
        if isinstance(part, int):
            node = items[part] if part < len(items) else node.get("items", {})
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        if not isinstance(node, dict):  # true: anything
            return {}
        for choice in node.get("anyOf", ()):
            node = choice if choice.get("type") != "null" else node
        if "$ref" in node:
            node = whole["$defs"][node["$ref"].rpartition("/")[2]]
    return node


@cache
def _schema(root: type[BaseModel]) -> Schema:
    return root.model_json_schema()


def _not_a(kind: str) -> Sentence:
    return lambda value, error, schema: (f"{shown(value)} is not {kind}", "")


def _too(word: str) -> Sentence:
    return lambda value, error, schema: (f"{shown(value)} is too {word}", _allowed_range(schema))


def _allowed_range(schema: Schema) -> str:
    """Return `allowed: 2 to 16`, or `allowed: more than 50, at most 100`, where the schema has bounds."""
    bounds = {name: schema[name] for name in BOUNDS if name in schema}
    if set(bounds) == {"minimum", "maximum"}:
        return f"allowed: {bounds['minimum']} to {bounds['maximum']}"
    return f"allowed: {', '.join(f'{BOUNDS[name]} {bound}' for name, bound in bounds.items())}" if bounds else ""


def _no_option(value: Any, error: ErrorDetails, schema: Schema) -> tuple[str, str]:
    return f"{shown(value)} is not an option", allowed_values(str(value), map(str, schema.get("enum", ())))


def _no_section(value: Any, error: ErrorDetails, schema: Schema) -> tuple[str, str]:
    fix = "write its keys below it"
    if isinstance(value, str) and error["loc"]:  # a step's options have no named choices
        fix += f"; a named choice goes under `defaults`, as `override /{error['loc'][-1]}: {shown(value, quote=False)}`"
    return f"{shown(value)} is not a section", fix


def _own_words(value: Any, error: ErrorDetails, schema: Schema) -> tuple[str, str]:
    """A validator of ours said what to write instead."""
    return f"{shown(value)} cannot stand here", str(error.get("ctx", {}).get("error", error["msg"]))


def _missing(value: Any, error: ErrorDetails, schema: Schema) -> tuple[str, str]:
    return (f"{shown(value)} has too few values", PAIR) if isinstance(error["loc"][-1], int) else ("is missing", "")


def _other(value: Any, error: ErrorDetails, schema: Schema) -> tuple[str, str]:
    return f"{shown(value)} cannot stand here", error["msg"][:1].lower() + error["msg"][1:]


PAIR = "write [low, high]"
NAME = "a name: letters, digits, spaces and ._- only, with / between folders"
SENTENCES: dict[str, Sentence] = {
    "missing": _missing,
    "literal_error": _no_option,
    "value_error": _own_words,
    **dict.fromkeys(("model_type", "model_attributes_type"), _no_section),
    "dict_type": _not_a("a mapping"),
    "tuple_type": _not_a("a list"),
    "too_long": lambda value, error, schema: (f"{shown(value)} has too many values", PAIR),
    **dict.fromkeys(("greater_than", "greater_than_equal"), _too("small")),
    **dict.fromkeys(("less_than", "less_than_equal"), _too("large")),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), _not_a("an integer")),
    **dict.fromkeys(("float_type", "float_parsing"), _not_a("a number")),
    **dict.fromkeys(("bool_type", "bool_parsing"), _not_a("true or false")),
    "string_type": _not_a("text"),
    "string_pattern_mismatch": _not_a(NAME),
}
