"""MSSR: stable RL from one rollout per prompt (2512.18215, after its official code).

`MSSROptions` holds its options, ablation switches among them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from rdbcl_jax.batches import pytree
from rdbcl_jax.config import RunConfig
from rdbcl_jax.core import beta_tracker
from rdbcl_jax.core.advantages import entropy_shaped, whiten
from rdbcl_jax.core.masked import select
from rdbcl_jax.methods.grpo import GRPO, clipped, constant
from rdbcl_jax.methods.method import Method, Targets, Tracker
from rdbcl_jax.sections import (
    Count,
    InnerShare,
    NonNegative,
    Positive,
    Probability,
    Refused,
    Section,
    section,
)

OWN = GRPO(beta=0.01, clip_high=0.3, dual_clip=3.0, aggregation="token_mean")


@section("mssr")
@dataclasses.dataclass(frozen=True)
class MSSROptions(Section):
    """Of `mssr`.

    Attributes:
      tracker: False: no baseline.
      survey: start the tracker from one rollout of each prompt (pre-task statistics), not from ½.
      adaptive: forget by the policy's movement; False: always rho_min.
      rho_min, rho_max: the share of its counts that the tracker keeps at an update.
      kl_target: the movement from which it forgets as much as it may, in nats.
      window: updates over which the movement is averaged.
      whitening: of the advantages, over the batch.
      shaping: entropy shaping: of the sampled token, of the full distribution, or none.
      shaping_scale, shaping_share: an advantage A grows by min(scale · H, share · |A|).
    """

    tracker: bool = True
    survey: bool = False
    adaptive: bool = True
    rho_min: InnerShare = 0.875
    rho_max: Probability = 0.96
    kl_target: Positive = 0.01
    window: Count = 8
    whitening: bool = True
    shaping: Literal["sampled", "full", "none"] = "sampled"
    shaping_scale: NonNegative = 0.4
    shaping_share: NonNegative = 0.5

    def __post_init__(self):
        super().__post_init__()
        if self.rho_min > self.rho_max:
            raise Refused("rho_min", f"is {self.rho_min}, above rho_max, {self.rho_max}")


@pytree
class MSSRState:
    beta: beta_tracker.BetaTracker
    kls: Any  # [window] mean KL to the reference of the last updates; NaN: not yet seen


def mssr(config: RunConfig) -> Method:
    """Reward minus the tracker's baseline, whitened over the batch, shaped by entropy."""
    own, chosen = config.section(MSSROptions), OWN.chosen(config)
    if config.rollout.samples != 1:
        raise ValueError(
            f"mssr takes one rollout per prompt: rollout.samples is {config.rollout.samples}, "
            "expected 1 (raise rollout.prompts for more sequences)"
        )
    full = own.shaping == "full"

    def targets(batch, policy_logps, entropies):
        advantages = batch.rewards - batch.prompt_values[:, None]
        if own.whitening:
            advantages = whiten(advantages)
        advantages = select(advantages, ~jnp.isnan(batch.rewards))  # NaN: does not apply
        shaped = advantages
        if own.shaping != "none":
            shaped = entropy_shaped(
                advantages,
                policy_logps,
                batch.mask,
                scale=own.shaping_scale,
                share=own.shaping_share,
                entropies=entropies if full else None,
            )
        return Targets(shaped, constant(chosen.beta, batch))

    needs_kl = chosen.beta or (own.tracker and own.adaptive)
    method = clipped(
        config,
        chosen,
        targets,
        reference=chosen.reference if needs_kl else None,
        policy=own.shaping != "none",
        entropies=full,
        pretask="success" if own.tracker and own.survey else "",
        tracker=tracker(own) if own.tracker else None,
    )
    return method.reading("mssr")


def tracker(own: MSSROptions) -> Tracker:
    """The Beta tracker, with its forgetting set by the policy's movement."""

    def start(success) -> MSSRState:
        return MSSRState(beta_tracker.start(success, own.rho_min), np.full(own.window, np.nan))

    def observe(state: MSSRState, prompts, rewards, kl) -> MSSRState:
        kls = state.kls if kl is None else np.append(state.kls[1:], kl)
        known = kls[~np.isnan(kls)]
        moved = known.mean() if own.adaptive and len(known) else 0.0
        rho = beta_tracker.forgetting(moved, own.kl_target, own.rho_min, own.rho_max)
        applies = ~np.isnan(rewards)
        outcomes = (rewards[applies] > 0.5).astype(np.float32)
        return MSSRState(beta_tracker.observe(state.beta, prompts[applies], outcomes, rho), kls)

    def baselines(state: MSSRState, prompts):
        return beta_tracker.baselines(state.beta, jnp.asarray(prompts))

    return Tracker(start, baselines, observe)
