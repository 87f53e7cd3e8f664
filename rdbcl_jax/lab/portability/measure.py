"""Portability of any data set under any pair of policies, sample by sample.

Both policies answer every prompt G times, and each response's log-probs are taken under both. What
the signals are compared with is the thing itself: the previous policy's reasoning is cut off before
its answer, the trained policy continues it, and the verifier judges the result (`ported`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from rdbcl_jax.batches import ArrayLike
from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.kl import kl_estimate
from rdbcl_jax.core.masked import masked_mean
from rdbcl_jax.core.portability import kl_coefficients, reasoning_portability
from rdbcl_jax.data.records import Record
from rdbcl_jax.methods.rdbcl import PortabilityOptions
from rdbcl_jax.rewards.response_format import TAGS
from rdbcl_jax.rewards.scoring import RewardConfig
from rdbcl_jax.rewards.scoring import score as score_texts
from rdbcl_jax.rollout.generate import Generated, generate, generate_texts
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.sharding import local_rows
from rdbcl_jax.snapshots import Snapshot
from rdbcl_jax.training.logprobs import compiled_logprobs

KINDS = ("ratio", "confidence")
LEVELS = ("reasoning", "answer", "response")
SAMPLERS = ("trained", "reference")


class Source(NamedTuple):
    """Records that are all in, or all out of the distribution that the reference has learned."""

    name: str
    records: Sequence[Record]
    out_of_distribution: bool


@dataclasses.dataclass(frozen=True)
class Samples:
    """G responses of one policy to each of n records.

    Attributes:
      texts: the responses, [n][G].
      columns: name to one number per sample, [n, G].
      continuations: of the reference's samples, what the trained policy made of their reasoning.
    """

    texts: list[list[str]]
    columns: dict[str, Float[np.ndarray, "n G"]]
    continuations: list[list[str]] | None = None


def measure(
    config: RunConfig, trained: Snapshot, reference: Snapshot, source: Source, key: jax.Array
) -> dict[str, Samples]:
    """The samples of both policies, by sampler: `trained` and `reference`.

    Columns: `reward`, `accuracy`, `parsed`, `length` (tokens); `kl`, k3 from the sampler to the
    other policy, mean over tokens, nats; `rp/KIND/LEVEL` as in
    `core.portability.reasoning_portability`, with the reference as the previous policy whoever
    sampled (on its own samples `confidence` is the static kind); `beta/KIND/LEVEL`, what
    `config.portability`'s mapping makes of it over all of a source's samples; and of the
    reference's samples `ported`, 1 where the continuation is right.
    """
    rewards = RewardConfig(**config.rewards.to_dict())
    pair, keys = (trained, reference), jax.random.split(key, 3)
    samples = {
        name: _sampled(config, sampler, pair, source.records, rewards, key)
        for name, sampler, key in zip(SAMPLERS, pair, keys[:2], strict=True)
    }
    ours = samples["reference"]
    owners = [record for record in source.records for _ in range(config.rollout.samples)]
    prefixes = [reasoning_of(text) for group in ours.texts for text in group]
    texts = continue_from(config, trained, owners, prefixes, keys[2])
    shape = (len(source.records), config.rollout.samples)
    ported = score_texts(owners, texts, rewards).accuracy.reshape(shape)
    samples["reference"] = Samples(
        ours.texts, ours.columns | {"ported": ported}, _rows(texts, shape)
    )
    return samples


def continue_from(
    config: RunConfig,
    snapshot: Snapshot,
    records: Sequence[Record],
    prefixes: Sequence[str],
    key: jax.Array,
) -> list[str]:
    """One whole response per record: its prefix, and what the policy samples after it."""
    return generate_texts(
        snapshot.policy,
        snapshot.params,
        records,
        sampling_of(snapshot.policy, config.rollout),
        key,
        batch_size=config.evaluation.batch_size,
        prefixes=prefixes,
    )


def reasoning_of(text: str) -> str:
    """A response up to the end of its reasoning, as `rewards.spans` has it: the `</think>` after
    its `<think>`; without one, up to an `<answer>`, else all of it."""
    think, end_think, answer, _ = TAGS
    start = max(text.find(think), 0)
    stop = text.find(end_think, start)
    if stop >= 0:
        return text[: stop + len(end_think)]
    stop = text.find(answer, start)
    return text if stop < 0 else text[:stop]


# ------------------------------------------------------------------------------ pieces


def _sampled(config, sampler: Snapshot, pair, records, rewards, key) -> Samples:
    """`pair`: the trained policy and the reference, whose log-probs are taken."""
    policy, shape = sampler.policy, (len(records), config.rollout.samples)
    texts, parts = [], []
    for batch in generate(
        policy,
        sampler.params,
        records,
        sampling_of(policy, config.rollout),
        key,
        batch_size=config.rollout.prompts,
        samples=shape[1],
    ):
        logps = [_logps(config, snapshot, batch) for snapshot in pair]
        rollouts, valid = batch.host_rollouts(), batch.valid
        tokens, mask = rollouts.tokens, rollouts.mask
        spans = policy.spans.find(tokens, mask)
        ours, theirs = map(local_rows, logps)
        columns = _signals(ours, theirs, mask, spans)
        if sampler is not pair[0]:
            logps.reverse()
        columns["kl"] = masked_mean(kl_estimate(logps[0], logps[1], "k3"), mask, axis=-1)
        drawn = columns | {"length": mask.sum(-1), "finished": rollouts.finished}
        parts.append({name: np.asarray(value, float)[valid] for name, value in drawn.items()})
        texts += policy.texts(*(a[valid].reshape(-1, a.shape[-1]) for a in (tokens, mask)))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    scores = score_texts([r for r in records for _ in range(shape[1])], texts, rewards)
    judged = {"reward": scores.total, "accuracy": scores.accuracy, "parsed": scores.parsed}
    found |= {name: np.asarray(value, float).reshape(shape) for name, value in judged.items()}
    return Samples(
        _rows(texts, shape), found | _coefficients(config.section(PortabilityOptions), found)
    )


def _logps(config, snapshot: Snapshot, batch: Generated):
    return compiled_logprobs(
        snapshot.policy.model,
        snapshot.params,
        batch.prompts,
        batch.rollouts.tokens,
        batch.rollouts.mask,
        temperature=config.rollout.temperature,
        chunk_size=config.training.chunk_size,
    )


def _signals(policy_logps, reference_logps, mask, spans) -> dict[str, ArrayLike]:
    """RP of every kind and level; NaN where the span is empty, so that no signal is made up."""
    reasoning, answer = spans
    masks = {"reasoning": reasoning, "answer": answer, "response": reasoning | answer}
    return {
        f"rp/{kind}/{level}": reasoning_portability(
            policy_logps, reference_logps, masks[level], kind=kind, empty_value=np.nan
        )
        for kind in KINDS
        for level in LEVELS
    }


def _coefficients(options: PortabilityOptions, columns) -> dict[str, np.ndarray]:
    """What the mapping makes of RP, in which an empty span counts as 1, as in training."""
    return {
        name.replace("rp/", "beta/"): np.asarray(
            kl_coefficients(
                np.nan_to_num(values, nan=1.0).astype(np.float32),
                beta_min=options.beta_min,
                beta_max=options.beta_max,
                mapping=options.mapping,
                temperature=options.temperature,
            )
        )
        for name, values in columns.items()
        if name.startswith("rp/")
    }


def _rows(items: list, shape: tuple[int, int]) -> list[list]:
    return [items[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]
