"""MSSR: stable RL from one rollout per prompt (2512.18215, after its official code).

`config.mssr` holds its own options, ablation switches among them.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rdbcl_jax.batches import pytree
from rdbcl_jax.core import beta_tracker
from rdbcl_jax.core.advantages import entropy_shaped, whiten
from rdbcl_jax.methods.grpo import constant, loss, options
from rdbcl_jax.methods.method import Method, Targets, Tracker

OWN = {"beta": 0.01, "clip_high": 0.3, "dual_clip": 3.0, "aggregation": "token_mean"}
SHAPING = ("sampled", "full", "none")


@pytree
class MSSRState:
    beta: beta_tracker.BetaTracker
    kls: object  # [window] mean KL to the reference of the last updates; NaN: not yet seen


def mssr(config: ConfigDict) -> Method:
    """Reward minus the tracker's baseline, whitened over the batch, shaped by entropy."""
    own, chosen = config.mssr, options(config, **OWN)
    if config.rollout.samples != 1:
        raise ValueError(
            f"mssr takes one rollout per prompt: rollout.samples is {config.rollout.samples}, "
            "expected 1 (raise rollout.prompts for more sequences)"
        )
    if own.shaping not in SHAPING:
        raise ValueError(f"mssr.shaping is {own.shaping!r}, expected one of {SHAPING}")
    full = own.shaping == "full"

    def targets(batch, policy_logps, entropies):
        advantages = batch.rewards - batch.prompt_values[:, None]
        if own.whitening:
            advantages = whiten(advantages)
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
        return Targets(shaped, constant(chosen["beta"], batch))

    needs_kl = chosen["beta"] or (own.tracker and own.adaptive)
    return Method(
        name=config.method,
        targets=targets,
        loss=loss(config, chosen),
        reference=chosen["reference"] if needs_kl else None,
        policy=own.shaping != "none",
        entropies=full,
        survey="success" if own.tracker and own.survey else "",
        tracker=tracker(own) if own.tracker else None,
    )


def tracker(own: ConfigDict) -> Tracker:
    """The Beta tracker, with its forgetting set by the policy's movement."""

    def start(success) -> MSSRState:
        return MSSRState(beta_tracker.start(success, own.rho_min), np.full(own.window, np.nan))

    def observe(state: MSSRState, prompts, rewards, kl) -> MSSRState:
        kls = state.kls if kl is None else np.append(state.kls[1:], kl)
        known = kls[~np.isnan(kls)]
        moved = known.mean() if own.adaptive and len(known) else 0.0
        rho = beta_tracker.forgetting(moved, own.kl_target, own.rho_min, own.rho_max)
        outcomes = (rewards > 0.5).astype(np.float32)
        return MSSRState(beta_tracker.observe(state.beta, prompts, outcomes, rho), kls)

    def baselines(state: MSSRState, prompts):
        return beta_tracker.baselines(state.beta, jnp.asarray(prompts))

    return Tracker(start, baselines, observe)
