"""GRPO (2402.03300) and its variants: one loss, different options.

Options of `config.loss`, `config.kl`, `rollout.resample` and `prompts.order` that are None take the
variant's own value:

- `grpo`: advantages over the group's standard deviation, clipped surrogate, KL in the loss;
- `dr_grpo` (2503.20783): no division by the standard deviation, constant length normaliser, no KL;
- `dapo` (2503.14476): mean over tokens, higher upper clip, groups that say nothing replaced, no KL;
- `gspo` (2507.18071): one ratio per sequence with a narrow clip range, no KL;
- `cispo` (2506.13585): the clipped ratio is a constant weight, so that no token loses its gradient;
  mean over tokens, no KL. The paper tunes its upper bound and has no lower one;
- `rloo` (2402.14740): the baseline of a reward is the mean of the group's other rewards (the KL is
  in the loss, as for `grpo`; the paper has it in the reward);
- `sapo` (2511.20347): a soft gate on the ratio in place of the clip, no KL;
- `grpo_d` (GRPO-D of OThink-MR1, 2503.16081): GRPO whose β falls and then rises over a task's
  steps, here in the paper's range for counting tasks;
- `vas` (MMR1, 2509.21268): GRPO on prompts drawn by the variance of their rewards;
- `one_shot` (after DoPR, 2602.00815, a reconstruction): one prompt a batch, by volatility of its
  rewards and visits; advantages are over all of the batch's responses to it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax.numpy as jnp

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.config import Reference, RunConfig
from rdbcl_jax.core.advantages import group_advantages, leave_one_out_advantages
from rdbcl_jax.core.kl import KLSchedule
from rdbcl_jax.core.losses import Aggregation, RatioLevel, Surrogate, policy_loss_terms
from rdbcl_jax.methods.method import Method, Revision, TargetFunction, Targets
from rdbcl_jax.methods.prompts import Order, PromptOptions
from rdbcl_jax.methods.revisions import resampling

Scale = Literal["std", "none", "leave_one_out"]


@dataclasses.dataclass(frozen=True)
class GRPO:
    """What `config.loss`, `config.kl`, `rollout.resample` and `prompts.order` leave to the method:
    by default the values of `grpo`; `chosen` gives those that hold."""

    beta: float = 0.04
    reference: Reference = "previous"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    ratio_level: RatioLevel = "token"
    surrogate: Surrogate = "ppo"
    aggregation: Aggregation = "sequence_mean"
    advantage_scale: Scale = "std"
    resample: int = 0
    schedule: KLSchedule = "constant"
    floor: float = 0.0
    order: Order = "uniform"

    def chosen(self, config: RunConfig) -> GRPO:
        """These, replaced by what the config sets."""
        given = config.rollout.to_dict() | config.loss.to_dict() | config.kl.to_dict()
        given |= {"order": config.section(PromptOptions).order}
        names = [field.name for field in dataclasses.fields(self)]
        return dataclasses.replace(self, **{n: given[n] for n in names if given[n] is not None})


OF_THE_LOSS = ("clip_low", "clip_high", "dual_clip", "ratio_level", "surrogate", "aggregation")

VARIANTS = {
    "grpo": GRPO(),
    "dr_grpo": GRPO(advantage_scale="none", aggregation="constant", beta=0.0),
    "dapo": GRPO(aggregation="token_mean", clip_high=0.28, beta=0.0, resample=4),
    "gspo": GRPO(ratio_level="sequence", clip_low=3e-4, clip_high=4e-4, beta=0.0),
    "cispo": GRPO(
        surrogate="cispo", clip_low=1.0, clip_high=4.0, aggregation="token_mean", beta=0.0
    ),
    "rloo": GRPO(advantage_scale="leave_one_out"),
    "sapo": GRPO(surrogate="sapo", beta=0.0),
    "grpo_d": GRPO(beta=0.1, schedule="grpo_d", floor=0.4),
    "vas": GRPO(order="variance"),
    "one_shot": GRPO(order="volatility"),
}


def grpo(config: RunConfig) -> Method:
    """Group-normalised advantages, clipped surrogate, β · KL with the same β for every sample."""
    chosen = VARIANTS[config.method].chosen(config)
    return replacing(policy_gradient(config, chosen), chosen)


def replacing(method: Method, chosen: GRPO) -> Method:
    """The method with what `resample` asks for."""
    revise = resampling(chosen.resample) if chosen.resample else None
    return dataclasses.replace(method, revise=revise).reading("rollout.resample")


def policy_gradient(config: RunConfig, chosen: GRPO, **fields: Any) -> Method:
    """The group's advantages and one constant β; `fields`: what else a method asks for."""
    advantages = group_baseline(chosen.advantage_scale)

    def targets(batch, policy_logps, entropies):
        return Targets(advantages(batch.rewards), constant(chosen.beta, batch))

    method = clipped(config, chosen, targets, group=True, **fields)
    return method.reading("loss.advantage_scale")


def clipped(config: RunConfig, chosen: GRPO, targets: TargetFunction, **fields: Any) -> Method:
    """The policy loss on these targets, with a KL term where β is above 0, or RP's."""
    reads = {"kl.beta", *(f"loss.{name}" for name in OF_THE_LOSS)}
    if chosen.surrogate == "sapo":
        reads -= {"loss.clip_low", "loss.clip_high"}
    reference = chosen.reference if chosen.beta or config.kl.portability else None
    made = {"loss": loss(config, chosen), "reference": reference, "reads": frozenset(reads)}
    return Method(name=config.method, targets=targets, **(made | fields))


def with_given_advantages(config: RunConfig, chosen: GRPO, revise: Revision) -> Method:
    """Advantages that a revision gives, as "advantage", and one constant β."""

    def targets(batch, policy_logps, entropies):
        return Targets(batch.given["advantage"], constant(chosen.beta, batch))

    return clipped(config, chosen, targets, group=True, revise=revise, given=("advantage",))


def one_shot(config: RunConfig) -> Method:
    """GRPO on one prompt a batch: all of the batch's responses to it are one group."""
    chosen = VARIANTS["one_shot"].chosen(config)
    method, advantages = policy_gradient(config, chosen), group_baseline(chosen.advantage_scale)
    if chosen.order != "volatility":
        return method

    def targets(batch, policy_logps, entropies):
        whole = advantages(batch.rewards.reshape(-1)).reshape(batch.rewards.shape)
        return Targets(whole, constant(chosen.beta, batch))

    return dataclasses.replace(method, targets=targets)


def group_baseline(scale: Scale):
    """Rewards [P, G] to advantages [P, G]."""
    if scale == "leave_one_out":
        return leave_one_out_advantages
    return functools.partial(group_advantages, scale=scale)


def constant(beta: float, batch: TrainBatch):
    return jnp.full(batch.rewards.shape, beta, jnp.float32)


def loss(config: RunConfig, chosen: GRPO):
    """`core.losses.policy_loss_terms` with the chosen options."""
    return functools.partial(
        policy_loss_terms,
        clip_low=chosen.clip_low,
        clip_high=chosen.clip_high,
        dual_clip=chosen.dual_clip or None,
        ratio_level=chosen.ratio_level,
        surrogate=chosen.surrogate,
        aggregation=chosen.aggregation,
        kl_kind=config.kl.kind,
        kl_importance_weighted=config.kl.importance_weighted,
        max_length=config.rollout.max_tokens,
    )
