"""The pages, and their code blocks by language."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "examples/README.md", *(f"docs/{one.name}" for one in ROOT.glob("docs/*.md"))]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in sorted([*PAGES, "CHANGELOG.md"])}
CODE = re.compile(r"```.*?```", re.DOTALL)
BASIS = """# @package _global_
defaults:
  - override /model: digits_mobilenet
  - override /data: digits
"""
"""What a block of a few sections stands on."""


class Block(NamedTuple):
    """One code block."""

    page: str
    language: str
    text: str


BLOCKS = [
    Block(page, language, text)
    for page in PAGES
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
]


def blocks(language: str, page: str | None = None) -> list[str]:
    return [one.text for one in BLOCKS if one.language == language and page in (None, one.page)]
