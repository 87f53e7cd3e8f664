"""What changes while a task is learned, as one explicit value that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from rdbcl_jax.batches import pytree
from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.sharding import shardings_like


@pytree
class TrainState:
    """All that an update changes, on the device."""

    params: Any
    opt_state: Any
    step: Int[Array, ""]  # updates since the start of the task

    @classmethod
    def create(cls, params, optimizer: optax.GradientTransformation) -> TrainState:
        return cls(params, optimizer.init(params), jnp.zeros((), jnp.int32))


@pytree
class TaskState:
    """All that a step of a task takes from the step before it."""

    train: TrainState
    batches: Int[np.ndarray, ""]  # taken from the feed so far
    tracker: Any  # the method's memory of the prompts; None: it has none
    last_kl: Float[np.ndarray, ""]  # to the reference, of the step before; NaN: not measured


@pytree
class _Progress:
    """What the first layout of a saved step held beside its train state."""

    batches: Any
    tracker: Any


def make_init(
    params: Any, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> tuple[Callable[[Any], TrainState], Any]:
    """(init, shardings): `init` makes a fresh state from parameters like these, which it takes over
    (they are donated), laid on the mesh as `shardings` say."""

    def create(params):
        return TrainState.create(params, optimizer)

    shardings = shardings_like(jax.eval_shape(create, params), params, mesh)
    return jax.jit(create, donate_argnums=0, out_shardings=shardings), shardings


def restore_state(checkpoints: Checkpoints, step: int, like: TaskState) -> TaskState:
    """The state that was saved after `step` steps, in the present layout or the first, a pair of
    train state and progress without `last_kl`."""
    if any(name.startswith("0/") for name in checkpoints.names_of_step(step)):
        train, progress = checkpoints.restore_step(
            step, (like.train, _Progress(like.batches, like.tracker))
        )
        return TaskState(train, progress.batches, progress.tracker, like.last_kl)
    return checkpoints.restore_step(step, like)
