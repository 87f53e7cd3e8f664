"""The train state and the optimizer."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from rdbcl_jax.batches import pytree

_SKIP_LIMIT = 1_000_000  # consecutive non-finite steps that are skipped: as good as always


@pytree
class TrainState:
    """All that an update changes."""

    params: Any
    opt_state: Any
    step: Int[Array, ""]  # updates since the start of the task

    @classmethod
    def create(cls, params, optimizer: optax.GradientTransformation) -> TrainState:
        return cls(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up, then `constant`, `cosine` or `linear` decay to 0 over `steps`."""
    rest = max(steps - config.warmup_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(config.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(config.learning_rate, rest),
        "linear": lambda: optax.linear_schedule(config.learning_rate, 0.0, rest),
    }
    if config.schedule not in after:
        raise ValueError(f"schedule is {config.schedule!r}, expected one of {sorted(after)}")
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after[config.schedule]()], [config.warmup_steps])


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """`adamw` or `muon`, with clipping by global norm; a non-finite step changes nothing."""
    # counts from 1: the first step of a warm-up already moves
    rate = learning_rate(config, steps)

    def schedule(count):
        return rate(count + 1)

    if config.name == "adamw":
        inner = optax.adamw(schedule, config.b1, config.b2, weight_decay=config.weight_decay)
    elif config.name == "muon":
        inner = optax.contrib.muon(
            schedule, adam_b1=config.b1, adam_b2=config.b2, weight_decay=config.weight_decay
        )
    else:
        raise ValueError(f"optimizer is {config.name!r}, expected 'adamw' or 'muon'")
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.apply_if_finite(optax.chain(clip, inner), _SKIP_LIMIT)
