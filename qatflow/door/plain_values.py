"""Configs as plain values, without reading the environment: `${oc.env:NAME}` stays as it is written.

What it stands for is read where it is used, by `qatflow.recipe.variables`, so that no file has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc

RESOLVER = "oc.env"


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """Return a composed config as plain values, without Hydra's own node and without looking `${...}` up."""
    mapping: Any = OmegaConf.to_container(cfg)
    mapping.pop("hydra", None)
    return dict(mapping)


def plain(cfg: DictConfig | ListConfig) -> Any:
    """Return a config as plain values, with all interpolations resolved but those of the environment.

    Raises:
        OmegaConfBaseException: one leads nowhere.
    """
    with variables_kept():
        return OmegaConf.to_container(cfg, resolve=True)


@contextmanager
def variables_kept() -> Iterator[None]:
    """Let OmegaConf resolve environment variables to how they are written, while the block runs."""
    OmegaConf.register_new_resolver(RESOLVER, _written, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver(RESOLVER, oc.env, replace=True)


def _written(*parts: Any) -> str:
    return f"${{{RESOLVER}:{','.join('null' if part is None else str(part) for part in parts)}}}"
