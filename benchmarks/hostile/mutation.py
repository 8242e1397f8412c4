"""Valid text, bytes and values made hostile, by a seeded generator of random numbers."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from typing import Any

import yaml

CANARY = "hostile_canary"
"""A module of this tool: importing or calling it leaves a file that is looked for."""
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**63) - 1,
        10**400,
        0.0,
        -0.0,
        1e308,
        1e-320,
        float("inf"),
        float("nan"),
    ),
    *("", " ", "x", "null", "???", "${", "${x}", "${name}${seed}", "${oc.env:HOME}", "${oc.decode:'['}", "a" * 30_000),
    *(
        "\x00",
        "\x1b[2J",
        "\ud800",
        "\u202e",
        "\U0001f600",
        "../../x",
        "/",
        "/dev/null/x",
        "~nobody_here/x",
        "a:b",
        ":",
        "::",
    ),
    *(
        f"{CANARY}:run",
        f"{CANARY}.run",
        "os:system",
        "builtins:eval",
        "%s%n",
        "<script>alert(1)</script>",
        "1e999",
        "-",
    ),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": {}}}, [1, [2, [3]]], {"_target_": f"{CANARY}.run"}, ["x"] * 1000),
    *({"x": 10**30}, [float("inf")], [1e999, -1e999], {"factory": f"{CANARY}:run"}, [[1, 2], [3]], "9" * 5000),
)
TEXTS = (
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        "- ",
        "? ",
        "&a ",
        "*a",
        "<<: *a\n",
        "!!binary ",
        f"!!python/object/apply:{CANARY}.run []",
    ),
    *(
        "\t",
        "\n",
        "\r",
        "\x00",
        "\x85",
        "\ufeff",
        "#",
        "%YAML 1.2\n",
        "---\n",
        "...\n",
        "|",
        ">",
        "'",
        '"',
        "\\",
        "@",
        "`",
    ),
    *(
        "0x_",
        "0b",
        "1_000",
        "1:2:3",
        "!",
        "~",
        "off",
        "=",
        "9" * 5000,
        "[" * 60,
        "{a: " * 60,
        "- " * 60,
        "null: 1\n",
        "1: 2\n",
    ),
    *(
        "hydra: null\n",
        "defaults: [{/recipe: tiny}]\n",
        "defaults: [x]\n",
        f"_target_: {CANARY}.run\n",
        '"${"',
        "${oc.env:HOME}",
    ),
    *("a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n", "\ud7ff", "é", "\u2028", "steps: x\n", "trust: [x]\n"),
)


def yaml_of(chance: random.Random, text: str) -> bytes:
    """Return a YAML mapping made hostile: as a value, as a text, or as bytes."""
    match chance.randrange(20):
        case 0 | 1 | 2:
            return bytes_of(chance, text.encode())
        case 3 | 4 | 5 | 6 | 7 | 8 | 9:
            with contextlib.suppress(yaml.YAMLError, RecursionError):
                changed = value_of(chance, yaml.safe_load(text))
                return yaml.dump(changed, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    return text_of(chance, text)


def bytes_of(chance: random.Random, content: bytes) -> bytes:
    """Return bytes with some changed, added, left out, repeated or cut off."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(7):
            case 0 if data:
                data[place % len(data)] = chance.randrange(256)
            case 1:
                data[place:place] = chance.randbytes(chance.choice((1, 4, 8, 100)))
            case 2:
                del data[place : place + chance.choice((1, 4, 8, 100))]
            case 3:
                data = data[:place]
            case 4:
                data[place : place + 8] = chance.choice((b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7))
            case 5:
                data[place:place] = data[: chance.choice((8, 64, 1024))]
            case _ if data:
                data[place % min(len(data), 64)] ^= 1 << chance.randrange(8)
    return bytes(data) if chance.random() < 0.97 else chance.choice((b"", b"\x00", b"\xff\xfe", b"{}", b"[]"))


def text_of(chance: random.Random, text: str) -> bytes:
    """Return a text with lines moved or repeated and nasty pieces put in."""
    lines = text.splitlines(keepends=True)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(lines) + 1)
        match chance.randrange(6):
            case 0:
                lines.insert(place, chance.choice(TEXTS))
            case 1 if lines:
                line = lines[place % len(lines)]
                cut = chance.randrange(len(line) + 1)
                lines[place % len(lines)] = line[:cut] + chance.choice(TEXTS) + line[cut:]
            case 2 if lines:
                head, colon, _ = lines[place % len(lines)].partition(":")
                lines[place % len(lines)] = f"{head}{colon} {plain(chance.choice(VALUES))}\n"
            case 3 if lines:
                lines.insert(place, " " * chance.randrange(5) + chance.choice(lines))
            case 4 if lines:
                del lines[place % len(lines)]
            case _ if lines:
                lines[place % len(lines)] = " " * chance.randrange(9) + lines[place % len(lines)].lstrip()
    return "".join(lines).encode("utf-8", "surrogatepass")


def value_of(chance: random.Random, value: Any) -> Any:
    """Return a copy of a plain value with some parts of another kind, left out, added or nested."""
    root = {"root": copy.deepcopy(value)}
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        holder: Any = root
        while True:
            if not holder:
                break
            key = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
            if isinstance(holder[key], (dict, list)) and holder[key] and chance.random() < 0.85:
                holder = holder[key]
                continue
            _changed(chance, holder, key)
            break
    return root.get("root")


def _changed(chance: random.Random, holder: Any, key: Any) -> None:
    match chance.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[chance.choice(("", "x", "__class__", "version", "name"))] = copy.deepcopy(chance.choice(VALUES))
        case 2:
            holder[key] = [holder[key]]
        case 3:
            for _ in range(chance.choice((2, 30, 900))):
                holder[key] = [holder[key]]
        case _:
            holder[key] = copy.deepcopy(chance.choice(VALUES))


def json_of(chance: random.Random, content: bytes) -> bytes:
    """Return a JSON file made hostile: as a value mostly, else as text or bytes."""
    if chance.random() < 0.2:
        return bytes_of(chance, content)
    try:
        return json.dumps(value_of(chance, json.loads(content))).encode()
    except (RecursionError, ValueError):
        return b"[" * chance.choice((100, 100_000))


def plain(value: Any) -> str:
    """Return a value as YAML and Hydra's grammar have it, or as a text that neither can read."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)[:6000]
