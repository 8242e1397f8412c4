"""What all parts of a result have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from typing_extensions import Self


class Record(BaseModel):
    """A frozen part of a result, or of what a run keeps for its next start."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def taken(cls, values: Any) -> Self:
        """Return the record that was written as plain values.

        Raises:
            ValueError: they are of another form; the message is short.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(said_of(error)) from error


def said_of(error: ValidationError) -> str:
    """Return the first thing that is wrong with a record, in a few words."""
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].lower())))
