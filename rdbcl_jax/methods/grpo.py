"""GRPO (2402.03300) and its variants: one loss, other options.

Options of `config.loss`, `config.kl` and `rollout.resample` that are None take the variant's own
value:

- `grpo`: advantages over the group's standard deviation, clipped surrogate, KL in the loss;
- `dr_grpo` (2503.20783): no division by the standard deviation, constant length normaliser, no KL;
- `dapo` (2503.14476): mean over tokens, higher upper clip, groups that say nothing are drawn again,
  no KL;
- `gspo` (2507.18071): one ratio per sequence with a narrow clip range, no KL;
- `cispo` (2506.13585): the clipped ratio is a constant weight, so that no token loses its gradient;
  mean over tokens, no KL. The paper tunes its upper bound and has no lower one;
- `rloo` (2402.14740): the baseline of a reward is the mean of the group's other rewards. (The KL is
  in the loss, as for `grpo`; the paper has it in the reward.)
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.core.advantages import group_advantages, leave_one_out_advantages
from rdbcl_jax.core.losses import policy_loss_terms
from rdbcl_jax.methods.method import Method, Targets

GRPO = {
    "beta": 0.04,
    "reference": "previous",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": 0.0,
    "ratio_level": "token",
    "surrogate": "ppo",
    "aggregation": "sequence_mean",
    "advantage_scale": "std",
    "resample": 0,
}
VARIANTS = {
    "grpo": {},
    "dr_grpo": {"advantage_scale": "none", "aggregation": "constant", "beta": 0.0},
    "dapo": {"aggregation": "token_mean", "clip_high": 0.28, "beta": 0.0, "resample": 4},
    "gspo": {"ratio_level": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "beta": 0.0},
    "cispo": {
        "surrogate": "cispo",
        "clip_low": 1.0,
        "clip_high": 4.0,
        "aggregation": "token_mean",
        "beta": 0.0,
    },
    "rloo": {"advantage_scale": "leave_one_out"},
}


def options(config: ConfigDict, **own: Any) -> dict[str, Any]:
    """GRPO's options, replaced by the method's `own`, replaced by what the config sets."""
    chosen = {**config.rollout.to_dict(), **config.loss.to_dict(), **config.kl.to_dict()}
    own = {**GRPO, **own}
    return {name: own[name] if chosen.get(name) is None else chosen[name] for name in own}


def grpo(config: ConfigDict) -> Method:
    """Group-normalised advantages, clipped surrogate, β · KL with the same β for every sample."""
    chosen = options(config, **VARIANTS[config.method])
    return policy_gradient(config, chosen, resample=chosen["resample"])


def policy_gradient(config: ConfigDict, chosen: dict[str, Any], **fields: Any) -> Method:
    """Advantages of the group and one constant β; `fields`: what else a method asks for."""
    advantages, beta = group_baseline(chosen["advantage_scale"]), chosen["beta"]

    def targets(batch, policy_logps, entropies):
        return Targets(advantages(batch.rewards), constant(beta, batch))

    return Method(
        name=config.method,
        targets=targets,
        loss=loss(config, chosen),
        reference=chosen["reference"] if beta else None,
        **fields,
    )


def group_baseline(scale: str):
    """Rewards [P, G] to advantages [P, G]."""
    if scale == "leave_one_out":
        return leave_one_out_advantages
    return functools.partial(group_advantages, scale=scale)


def constant(beta: float, batch: TrainBatch):
    return jnp.full(batch.rewards.shape, beta, jnp.float32)


def loss(config: ConfigDict, chosen: dict[str, Any]):
    """`core.losses.policy_loss_terms` with the chosen options."""
    names = ("clip_low", "clip_high", "ratio_level", "surrogate", "aggregation")
    return functools.partial(
        policy_loss_terms,
        **{name: chosen[name] for name in names},
        dual_clip=chosen["dual_clip"] or None,
        kl_kind=config.kl.kind,
        max_length=config.rollout.max_tokens,
    )
