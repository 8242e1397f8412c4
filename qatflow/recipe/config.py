"""The base of every config: no unknown keys, no changes after it is made."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A typed section of a recipe. Field docstrings become the descriptions that errors and `--cfg` show."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)
