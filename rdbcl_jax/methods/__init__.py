"""Every method by its name in `config.method`."""

from __future__ import annotations

from ml_collections import ConfigDict

from rdbcl_jax.methods.grpo import grpo
from rdbcl_jax.methods.method import Method
from rdbcl_jax.methods.rdbcl import rdbcl

METHODS = {"grpo": grpo, "rdbcl": rdbcl}


def make_method(config: ConfigDict) -> Method:
    """The method that `config.method` names. Raises ValueError for an unknown name."""
    if config.method not in METHODS:
        raise ValueError(f"config.method is {config.method!r}, expected one of {sorted(METHODS)}")
    return METHODS[config.method](config)
