"""Which prompts a task is learned from, `prompts.filter`, and which a batch holds, `prompts.order`:
for any method.

- `uniform`: every prompt once a pass, in random order;
- `variance`: MMR1's variance-aware sampling (2509.21268). All prompts are scored from fresh
  rollouts, from time to time; a share of the batch is drawn in proportion to the scores, with
  replacement, the rest alike;
- `stages`: a curriculum. One survey before the task ranks the prompts by how often they are solved;
  each part of the task draws from one part of the ranking, the easiest first (reconstruction);
- `volatility`: one prompt a batch, the one of the most volatile rewards, with a bonus for prompts
  that were seldom visited (after DoPR, 2602.00815, whose formula is not public: reconstruction).

A filter leaves prompts out for a whole task, by the policy's responses to them before it (after
RIF-RFT of 2507.05386, which keeps what can be learned; the rules are a reconstruction):

- `solvable`: one response at least is right, so that there is something to reinforce;
- `mixed`: one is right and one is wrong, so that there is something to compare, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from rdbcl_jax.batches import pytree
from rdbcl_jax.methods.method import Filter, PromptSampler, Survey
from rdbcl_jax.rewards import shaping
from rdbcl_jax.sections import Count, NonNegative, Refused, Section, Share, section

Order = Literal["uniform", "variance", "stages", "volatility"]
Rule = Literal["none", "solvable", "mixed"]


@section("prompts")
@dataclasses.dataclass(frozen=True)
class PromptOptions(Section):
    """Which prompts a task and its batches hold, see rdbcl_jax.methods.prompts.

    Attributes:
      order: how they are chosen; None: as the method has it.
      filter: which are left out before a task; where none passes, all are learned from.
      samples: fresh responses to each prompt in a survey, of "variance", "stages" and a filter.
      every: steps between surveys, of "variance".
      share: of the batch, drawn by score; of "variance".
      diversity: weight of the responses' diversity in a score, beside the variance; of "variance".
      stages: parts of the ranking and of the task; of "stages".
      exploration: weight of the bonus for seldom visits; of "volatility".
    """

    order: Order | None = None
    filter: Rule = "none"
    samples: Count = 32
    every: Count = 35
    share: Share = 0.5
    diversity: Share = 0.2
    stages: Count = 3
    exploration: NonNegative = 0.2

    def __post_init__(self):
        super().__post_init__()
        if self.filter == "mixed" and self.samples < 2:
            raise Refused("samples", "is 1, and one response is never right and wrong; expected 2")

    def scored(self, size: int) -> int:
        """How many of so many prompts are drawn by score; of "variance"."""
        return round(self.share * size)


def prompt_sampler(order: Order, options: PromptOptions) -> PromptSampler | None:
    """The sampler of that order; None: uniform."""
    if order == "variance":
        return by_variance(options)
    if order == "stages":
        return by_stages(options)
    if order == "volatility":
        return by_volatility(options)
    return None


def success(texts: Sequence[str], right: Bool[np.ndarray, "G"]) -> float:
    """The share of a prompt's responses that are right, in [0, 1]."""
    return float(np.mean(right))


def prompt_filter(rule: Rule, samples: int) -> Filter | None:
    """The filter of that rule, by so many responses to each prompt; None: every prompt passes."""
    if rule == "none":
        return None

    def keeps(share: Float[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
        return (share > 0) & ((share < 1) | (rule == "solvable"))

    return Filter(Survey(0, samples, success), keeps)


# ------------------------------------------------------------------ by variance


def by_variance(options: PromptOptions) -> PromptSampler:
    """MMR1's variance-aware sampling."""

    def value(texts: Sequence[str], right: Bool[np.ndarray, "G"]) -> float:
        p, weight = float(np.mean(right)), options.diversity
        return (1 - weight) * p * (1 - p) + weight * distinct_share(texts)

    def choose(scores, rng: np.random.Generator, size: int, progress: float):
        by_score = options.scored(size)
        total = scores.sum()
        chances = scores / total if total > 0 else None
        drawn = rng.choice(len(scores), by_score, p=chances)
        return np.concatenate([drawn, alike(len(scores), rng, size - by_score)])

    return PromptSampler(
        start=np.ones,
        choose=choose,
        survey=Survey(options.every, options.samples, value),
        refresh=lambda scores, values: values,
    )


def distinct_share(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams of words over all of them, of the texts together, in [0, 1]; 0 without any.
    (distinct-n, 1510.03055; MMR1 takes it or an inverted self-BLEU, n is ours.)"""
    return shaping.distinct_share((text.split() for text in texts), n, without=0.0)


def alike(count: int, rng: np.random.Generator, size: int) -> Int[np.ndarray, "size"]:
    """Prompts below `count`, each as likely as any other; none twice where there are enough."""
    return rng.choice(count, size, replace=size > count)


# ------------------------------------------------------------------ by stages


def by_stages(options: PromptOptions) -> PromptSampler:
    """From the prompts that are solved most to those that are solved least."""

    def choose(success, rng: np.random.Generator, size: int, progress: float):
        ranked = np.argsort(-success, kind="stable")
        part = np.array_split(ranked, options.stages)[int(progress * options.stages)]
        return part[alike(len(part), rng, size)] if len(part) else alike(len(ranked), rng, size)

    return PromptSampler(
        start=lambda count: np.full(count, 0.5),
        choose=choose,
        survey=Survey(0, options.samples, success),
        refresh=lambda success, values: values,
    )


# ------------------------------------------------------------------ by volatility


@pytree
class Visits:
    """Of each of N prompts: batches that held it, and the volatility of its rewards in the last."""

    count: Any  # [N]
    volatility: Float[Any, "N"]


def by_volatility(options: PromptOptions) -> PromptSampler:
    """The prompt of the greatest volatility + c · √(log(1 + all visits) / (1 + its visits)), as
    often as the batch has rows; ties at random. Volatility: the standard deviation of its rewards
    in the last batch that held it, 0 before."""

    def choose(visits: Any, rng: np.random.Generator, size: int, progress: float):
        bonus = np.sqrt(np.log1p(visits.count.sum()) / (1 + visits.count))
        worth = visits.volatility + options.exploration * bonus
        best = rng.choice(np.flatnonzero(worth == worth.max()))
        return np.full(size, best)

    def observe(visits: Visits, prompts, rewards) -> Visits:
        count, volatility = visits.count.copy(), visits.volatility.copy()
        for prompt in np.unique(prompts):
            known = rewards[prompts == prompt]
            known = known[~np.isnan(known)]
            count[prompt] += 1
            volatility[prompt] = known.std() if len(known) else 0.0
        return Visits(count, volatility)

    return PromptSampler(
        start=lambda count: Visits(np.zeros(count), np.zeros(count)),
        choose=choose,
        observe=observe,
    )
