"""RDB-CL (2605.18903): each sample's KL anchor scaled by its Reasoning Portability.

The formulas are a reconstruction, see `core.portability`. `PortabilityOptions` chooses kind, level
and mapping of RP, and the controls that a claim about it needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.kl import kl_estimate
from rdbcl_jax.core.masked import divide, masked_mean, masked_sum_and_count
from rdbcl_jax.core.portability import (
    Mapping,
    accuracy_kl_coefficients,
    invert_kl_coefficients,
    kl_coefficients,
    matched_constant_kl_coefficients,
    reasoning_portability,
    shuffle_kl_coefficients,
    verified_kl_coefficients,
)
from rdbcl_jax.methods.grpo import GRPO, policy_gradient, replacing
from rdbcl_jax.methods.method import Method
from rdbcl_jax.sections import NonNegative, Positive, Refused, Section, section

LEVELS = {
    "reasoning": lambda batch: batch.reasoning_mask,
    "answer": lambda batch: batch.answer_mask,
    "response": lambda batch: batch.reasoning_mask | batch.answer_mask,
}


# of a batch the samples that a KL term applies to: what is broadcast to [P, G]
Anchored = Callable[[TrainBatch], Bool[Array, "P #G"] | bool]


def every_sample(batch: TrainBatch) -> bool:
    return True


@section("portability")
@dataclasses.dataclass(frozen=True)
class PortabilityOptions(Section):
    """How `rdbcl` scales the KL term.

    Attributes:
      kind: of RP, see `core.portability.reasoning_portability`; "static" is measured once, before
        the task.
      level: the tokens of a response that it is taken from; "static" is of the reasoning.
      mapping: from RP to β, see `core.portability.kl_coefficients`.
      beta_min, beta_max: the least and the greatest β.
      temperature: of the sigmoid.
      verified: ours: anchor only samples that are right, and those that nobody judged.
      control: what a claim must beat: for every sample the batch's mean β ("matched"), or the β
        that gives the same KL loss ("strength"); the βs dealt out at random ("shuffled"); high RP
        relaxes ("inverted"); β by the group's accuracy instead of RP ("accuracy").
    """

    kind: Literal["ratio", "confidence", "static"] = "ratio"
    level: Literal["reasoning", "answer", "response"] = "reasoning"
    mapping: Mapping = "sigmoid"
    beta_min: NonNegative = 0.0
    beta_max: NonNegative = 0.08
    temperature: Positive = 1.0
    verified: bool = False
    control: Literal["none", "matched", "strength", "shuffled", "inverted", "accuracy"] = "none"

    def __post_init__(self):
        super().__post_init__()
        if self.beta_min > self.beta_max:
            raise Refused("beta_min", f"is {self.beta_min}, above beta_max, {self.beta_max}")
        if self.kind == "static" and self.level != "reasoning":
            said = f"is {self.level!r}, and kind 'static' is measured of the reasoning"
            raise Refused("level", f"{said}; expected 'reasoning'")
        if self.control == "accuracy" and self.verified:
            said = "is True, and control 'accuracy' gives each group one coefficient"
            raise Refused("verified", f"{said}; expected False")


def rdbcl(config: RunConfig, anchored: Anchored = every_sample) -> Method:
    """GRPO whose KL coefficient is high where the previous policy's reasoning carries over; see
    `portable`."""
    chosen = GRPO().chosen(config)
    return portable(config, replacing(policy_gradient(config, chosen), chosen), anchored)


def portable(config: RunConfig, method: Method, anchored: Anchored = every_sample) -> Method:
    """The method with each sample's β scaled by its portability: it samples what it learns from,
    and rewards it, as it did.

    Args:
      anchored: the samples that keep their β, where the caller takes it from others. Controls are
        matched to what RP does to these.
    Raises:
      ValueError: a method whose responses are not sampled, or whose β is for some samples only.
    """
    portability = config.section(PortabilityOptions)
    static = portability.kind == "static"
    refused = method.responses != "sampled" or method.partly_anchored
    # one number of each prompt is what a batch brings along
    taken = method.pretask or method.tracker is not None
    if refused or (static and taken):
        raise ValueError(
            f"config.kl.portability is True, which scales the β of sampled responses; for "
            f"{config.method} expected "
            + ("False, or the method 'portable_replay'" if method.rehearses else "False")
            + (" or another portability.kind than 'static'" if taken else "")
        )
    # the default of the loss, where the method has one of its own
    aggregation = getattr(method.loss, "keywords", {}).get("aggregation", "sequence_mean")

    def targets(batch, policy_logps, entropies):
        found = method.targets(batch, policy_logps, entropies)
        rp = sample_portability(batch, policy_logps, portability)
        key = jax.random.fold_in(jax.random.key(config.seed), batch.step)
        concerned = batch.mask.any(-1) & anchored(batch)
        beta = coefficients(rp, batch, portability, key, concerned)
        if portability.control == "strength":
            kl = kl_estimate(policy_logps, batch.reference_logps, config.kl.kind)
            kl, count = masked_sum_and_count(kl, batch.mask, axis=-1)
            if aggregation == "sequence_mean":  # else tokens weigh alike
                kl = divide(kl, count)
            beta = matched_constant_kl_coefficients(beta, concerned, kl=kl)
        return found._replace(kl_coef=beta, values={**found.values, "rp": rp})

    return dataclasses.replace(
        method.reading("portability").without("kl.beta"),
        targets=targets,
        reference=method.reference or config.kl.reference or "previous",
        policy=method.policy or not static or portability.control == "strength",
        previous=method.previous or not static,
        pretask="confidence" if static else method.pretask,
    )


def sample_portability(batch: TrainBatch, policy_logps, options: PortabilityOptions):
    """RP of each sample, [P, G]; `static` is one number per prompt, measured before the task.

    A response that is masked whole, since it was cut, has none: its log-probs mean nothing."""
    if options.kind == "static":
        return jnp.broadcast_to(batch.prompt_values[:, None], batch.rewards.shape)
    span = LEVELS[options.level](batch) & batch.mask
    return reasoning_portability(policy_logps, batch.previous_logps, span, kind=options.kind)


def coefficients(rp, batch: TrainBatch, options: PortabilityOptions, key, concerned):
    """β of each sample, [P, G], by the samples that are learned from, and what a control makes of
    it among those that are anchored (`concerned`, [P, G])."""
    limits = {"beta_min": options.beta_min, "beta_max": options.beta_max}
    if options.control == "accuracy":
        p = masked_mean(batch.accuracies, ~batch.demonstrated, axis=-1)[:, None]
        return accuracy_kl_coefficients(jnp.broadcast_to(p, rp.shape), **limits)
    mapping = {"mapping": options.mapping, "temperature": options.temperature}
    beta = kl_coefficients(rp, **limits, **mapping, valid=batch.mask.any(-1))
    if options.control == "inverted":
        beta = invert_kl_coefficients(beta, **limits)
    if options.verified:
        beta = verified_kl_coefficients(beta, batch.accuracies, beta_min=options.beta_min)
    if options.control == "matched":
        return matched_constant_kl_coefficients(beta, concerned)
    if options.control == "shuffled":
        return shuffle_kl_coefficients(key, beta, concerned)
    return beta
