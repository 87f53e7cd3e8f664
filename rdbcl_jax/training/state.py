"""What changes while a task is learned, as one explicit value that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.batches import pytree
from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.finite import check_finite
from rdbcl_jax.sharding import shardings_like


class OptimizerState(NamedTuple):
    """The optimizer's own state, and the updates that were left out since a loss or gradient was
    not finite. The fields are `optax.ApplyIfFiniteState`'s, as earlier checkpoints have them."""

    notfinite_count: Int[Array, ""]  # in a row, up to the last
    last_finite: Bool[Array, ""]
    total_notfinite: Int[Array, ""]  # since the start of the task
    inner_state: Any


@pytree
class TrainState:
    """All that an update changes, on the device."""

    params: Any
    opt_state: OptimizerState
    step: Int[Array, ""]  # updates made since the start of the task, without those left out

    @classmethod
    def create(cls, params, optimizer: optax.GradientTransformation) -> TrainState:
        def none():  # each an array of its own: they are donated
            return jnp.zeros((), jnp.int32)

        inner = optimizer.init(params)
        return cls(params, OptimizerState(none(), jnp.array(True), none(), inner), none())


@pytree
class TaskState:
    """All that a step of a task takes from the step before it."""

    train: TrainState
    batches: Int[np.ndarray, ""]  # taken from the feed so far
    tracker: Any  # the method's memory of the prompts; None: it has none
    last_kl: Float[np.ndarray, ""]  # to the reference, of the step before; NaN: not measured
    prompts: Any = None  # what the method's prompt sampler knows; None: it has none
    learned: Any = None  # [N] bool, prompts that pass the method's filter; None: it has none


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
    train state and progress without `last_kl`.

    Raises:
      NotFinite: a parameter in it that is not.
    """
    state = _restored(checkpoints, step, like)
    check_finite(state.train.params, f"the state after step {step} is not used")
    return state


def _restored(checkpoints: Checkpoints, step: int, like: TaskState) -> TaskState:
    if any(name.startswith("0/") for name in checkpoints.names_of_step(step)):
        train, progress = checkpoints.restore_step(
            step, (like.train, _Progress(like.batches, like.tracker))
        )
        return TaskState(train, progress.batches, progress.tracker, like.last_kl, like.prompts)
    return checkpoints.restore_step(step, like)
