"""Every method by its name in `config.method`."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from ml_collections import ConfigDict

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.methods.grpo import grpo
from rdbcl_jax.methods.method import Method
from rdbcl_jax.methods.rdbcl import rdbcl

METHODS = {"grpo": grpo, "rdbcl": rdbcl}


def make_method(config: ConfigDict) -> Method:
    """The method that `config.method` names.

    Raises:
      ValueError: an unknown name, or any option that the method's formulas refuse; they are tried
        on one sample here, so that nothing has been compiled yet when they do.
    """
    if config.method not in METHODS:
        raise ValueError(f"config.method is {config.method!r}, expected one of {sorted(METHODS)}")
    method = METHODS[config.method](config)
    _try(method)
    return method


def _try(method: Method) -> None:
    token, sample = jnp.zeros((1, 1, 1)), jnp.zeros((1, 1))
    seen = jnp.ones((1, 1, 1), bool)
    fields = {field.name: token for field in dataclasses.fields(TrainBatch)}
    spans = {"mask": seen, "reasoning_mask": seen, "answer_mask": seen}
    batch = TrainBatch(**{**fields, **spans, "advantages": method.advantages(sample)})
    kl_coef = 0.0
    if method.kl_coefficients is not None:
        kl_coef, _ = method.kl_coefficients(batch, token)
    method.loss(token, None, batch.advantages, seen, reference_logps=token, kl_coef=kl_coef)
