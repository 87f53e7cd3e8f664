"""Options that change any method: β by portability, its schedule, entropy, which prompts."""

from __future__ import annotations

import dataclasses
import operator

import jax.numpy as jnp

from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.advantages import high_entropy_advantages
from rdbcl_jax.core.kl import kl_schedule
from rdbcl_jax.methods.classic import ReplayOptions
from rdbcl_jax.methods.grpo import GRPO, VARIANTS
from rdbcl_jax.methods.method import Method, fewest
from rdbcl_jax.methods.prompts import PromptOptions, prompt_filter, prompt_sampler
from rdbcl_jax.methods.rdbcl import portable

# what any method reads that samples responses, and what it reads where it has a KL term
OF_SAMPLED = ("loss.mask_truncated", "loss.entropy_bonus", "loss.entropy_share", "kl.portability")
OF_A_KL_TERM = ("kl.kind", "kl.importance_weighted", "kl.reference", "kl.schedule", "kl.floor")
# where a method does not read them, these are refused, and not only named when a run starts
REFUSED = ("rollout.resample", "loss.advantage_scale")


def check_read(config: RunConfig, method: Method) -> None:
    """Raises ValueError for an option that is set and that the method does not read."""
    for field in REFUSED:
        asked = operator.attrgetter(field)(config)
        if asked and field not in method.reads:
            raise ValueError(
                f"config.{field} is {asked!r}, which {config.method} does not read; expected None"
            )
    schedule = config.kl.schedule
    if schedule not in (None, "constant") and method.reference is None:
        raise ValueError(
            f"config.kl.schedule is {schedule!r}, and {config.method} has no KL term here; "
            "expected None, or a kl.beta above 0 for a method that samples"
        )


def check_together(config: RunConfig, chosen: GRPO) -> None:
    """Raises ValueError for a setting that another one keeps from doing anything."""
    if config.kl.floor is not None and chosen.schedule == "constant":
        raise ValueError(
            f"config.kl.floor is {config.kl.floor}, the least of a schedule, and the schedule is "
            "'constant'; expected another kl.schedule, or a floor of None"
        )
    if config.loss.dual_clip and chosen.surrogate != "ppo":
        raise ValueError(
            f"config.loss.dual_clip is {config.loss.dual_clip}, of the surrogate 'ppo', and "
            f"config.loss.surrogate is {chosen.surrogate!r}; expected None"
        )


def with_options(config: RunConfig, method: Method) -> Method:
    """The method with what the config asks of any.

    Raises:
      ValueError: an option that does not go with the method.
    """
    chosen, loss = VARIANTS.get(config.method, GRPO()).chosen(config), config.loss
    if method.responses != "sampled" and (loss.entropy_bonus or loss.entropy_share < 1):
        raise ValueError(
            f"config.loss has entropy_bonus {loss.entropy_bonus} and entropy_share "
            f"{loss.entropy_share}, which are of sampled responses; for {config.method} expected "
            "0 and 1"
        )
    check_together(config, chosen)
    merge = method.merge if config.training.merge is None else config.training.merge
    method = dataclasses.replace(method, entropy_bonus=loss.entropy_bonus, merge=merge)
    if loss.mask_truncated and method.responses == "sampled":
        method = whole(method)
    if loss.entropy_share < 1:
        method = unsure(method, loss.entropy_share)
    if config.kl.portability:
        method = portable(config, method)
    check_read(config, method)
    if chosen.schedule != "constant" and method.reference is not None:
        method = scheduled(method, chosen)
    if chosen.order != "uniform":
        method = ordered(config, method, chosen)
    prompts = config.section(PromptOptions)
    if prompts.filter != "none" and method.responses == "none":
        raise ValueError(
            f"config.prompts.filter is {prompts.filter!r}, and {config.method} learns nothing; "
            "expected 'none'"
        )
    method = dataclasses.replace(method, filter=prompt_filter(prompts.filter, prompts.samples))
    return reading_any(method)


def reading_any(method: Method) -> Method:
    """The method, which reads the options of any that apply to it."""
    if method.prompts or method.filter:
        method = method.reading("prompts")
    method = method.reading("prompts.order", "prompts.filter")
    if method.responses != "sampled":
        return method
    if method.reference is not None:
        method = method.reading(*OF_A_KL_TERM)
    if method.reference == "ema":
        method = method.reading("kl.ema_decay")
    return method.reading(*OF_SAMPLED)


def scheduled(method: Method, chosen: GRPO) -> Method:
    """Whatever β the method has for a sample, times the schedule's factor for the step."""

    def targets(batch, policy_logps, entropies):
        found = method.targets(batch, policy_logps, entropies)
        factor = kl_schedule(batch.progress, chosen.schedule, chosen.floor)
        return found._replace(kl_coef=factor * found.kl_coef)

    return dataclasses.replace(method, targets=targets, scheduled=True)


def whole(method: Method) -> Method:
    """No advantage for responses that the engine masks, since they were cut: a batch of nothing
    else has no signal."""

    def targets(batch, policy_logps, entropies):
        found = method.targets(batch, policy_logps, entropies)
        there = batch.mask if found.advantages.ndim == batch.mask.ndim else batch.mask.any(-1)
        return found._replace(advantages=jnp.where(there, found.advantages, 0.0))

    return dataclasses.replace(method, targets=targets)


def unsure(method: Method, share: float) -> Method:
    """The method's advantages where the policy is unsure, on this share of the batch's tokens."""

    def targets(batch, policy_logps, entropies):
        found = method.targets(batch, policy_logps, entropies)
        kept = high_entropy_advantages(found.advantages, entropies, batch.mask, share=share)
        return found._replace(advantages=kept)

    return dataclasses.replace(method, targets=targets, policy=True, entropies=True)


def ordered(config: RunConfig, method: Method, chosen: GRPO) -> Method:
    """The method on prompts that `prompts.order` chooses."""
    if method.responses != "sampled":
        raise ValueError(
            f"config.prompts.order is {chosen.order!r}, which chooses by rewards: {config.method} "
            "samples no responses, expected 'uniform'"
        )
    options, replay = config.section(PromptOptions), config.section(ReplayOptions)
    sampler, least = prompt_sampler(chosen.order, options), method.fewest_prompts
    if chosen.order == "variance" and options.share:

        def by_score(size: int) -> int:
            return options.scored(size - replay.rehearsed(size) * method.rehearses)

        least = max(least, fewest(by_score, "prompts.share draws none by its score"))
    scheduled = method.scheduled or chosen.order == "stages"
    return dataclasses.replace(method, prompts=sampler, scheduled=scheduled, fewest_prompts=least)
