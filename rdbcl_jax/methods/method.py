"""The contract of a method: what it makes of rewards and log-probs; all else is the engine's.

A method is composed of `core` functions. It owns no arrays, so nothing of it needs a checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Float

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.core.losses import LossTerms, policy_loss_terms

# (batch, log-probs of the policy that sampled [P, G, T]) -> kl_coef [P, G] and per-sample [P, G]
# values worth logging, such as RP. Runs inside the jitted update, over the whole batch.
KLCoefficients = Callable[
    [TrainBatch, Float[Array, "P G T"]],
    tuple[Float[Array, "P G"], dict[str, Float[Array, "P G"]]],
]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to learn from rollouts.

    Attributes:
      name: as in `config.method`.
      advantages: rewards [P, G] to advantages [P, G]; pure, jax.numpy.
      kl_coefficients: per-sample strength of the KL anchor; None: no KL term, and the reference
        policy is never run.
      loss: sums and counts of the loss, with `core.losses.policy_loss_terms`' signature.
    """

    name: str
    advantages: Callable[[Float[Array, "P G"]], Float[Array, "P G"]]
    kl_coefficients: KLCoefficients | None = None
    loss: Callable[..., LossTerms] = policy_loss_terms
