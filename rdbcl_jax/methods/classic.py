"""The classics of continual learning, on top of GRPO.

- `joint`: all tasks at once, the upper bound: every stage trains on the prompts of all.
- `replay`: a share of every batch are prompts of earlier tasks.
- `ewc`: a quadratic penalty on what mattered before (1612.00796; one running Fisher information for
  all earlier tasks, 1805.06370).
- `lwf`: learning without forgetting (1606.09282) for policies, a reconstruction: the previous
  policy's own responses to the task's prompts join each group as targets, which gives the gradient
  of KL(π_previous‖π_θ) over whole responses.
- `zero_shot`: nothing is learned, the lower bound.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from ml_collections import ConfigDict

from rdbcl_jax.methods.grpo import options, policy_gradient
from rdbcl_jax.methods.method import Method

ANCHORS = ("all", "old")


def _grpo(config: ConfigDict, **fields) -> Method:
    """GRPO without a KL term unless `config.kl.beta` asks for one: the classic is the anchor."""
    return policy_gradient(config, options(config, beta=0.0), **fields)


def joint(config: ConfigDict) -> Method:
    return _grpo(config, data="joint")


def replay(config: ConfigDict) -> Method:
    return rehearsing(config, _grpo(config))


def rehearsing(config: ConfigDict, method: Method) -> Method:
    """The method on batches of which `config.replay.fraction` of the prompts are of earlier tasks,
    whose first `config.replay.per_task` records are kept.

    `config.replay.anchor`: its KL term, where it has one, is of "all" samples, or only of those of
    "old" prompts, which slows nothing that is new.
    """
    chosen = config.replay
    if not 0 < chosen.fraction < 1:
        raise ValueError(f"replay.fraction is {chosen.fraction}, expected within (0, 1)")
    if chosen.anchor not in ANCHORS:
        raise ValueError(f"replay.anchor is {chosen.anchor!r}, expected one of {ANCHORS}")

    def targets(batch, policy_logps, entropies):
        found = method.targets(batch, policy_logps, entropies)
        if chosen.anchor == "all":
            return found
        old = jnp.asarray(batch.replayed)[..., None]
        return found._replace(kl_coef=jnp.where(old, found.kl_coef, 0.0))

    return dataclasses.replace(method, targets=targets, data="replay")


def ewc(config: ConfigDict) -> Method:
    return _grpo(config, consolidation=config.ewc.strength)


def lwf(config: ConfigDict) -> Method:
    """`config.lwf.weight` is the advantage of the previous policy's responses, of which each
    group gets one."""
    method, weight = _grpo(config, previous_responses=1), config.lwf.weight

    def targets(batch, policy_logps, entropies):
        own = method.targets(batch, policy_logps, entropies)
        given = weight * batch.given.astype(jnp.float32)
        return own._replace(advantages=own.advantages + given)

    return dataclasses.replace(method, targets=targets)


def zero_shot(config: ConfigDict) -> Method:
    return _grpo(config, responses="none")
