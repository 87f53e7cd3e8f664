"""Learning dynamics of a policy (2506.23508): what training on one set of texts does to another.

Magnitude: how far a gradient step on a text moves the predictions on another, by the empirical
neural tangent kernel (`core.influence`). Direction: the perplexity of the training texts under the
policy that is to be trained; low means that they agree with what it would say.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rdbcl_jax.batches import ArrayLike
from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.influence import (
    TokenChange,
    first_order_change,
    influence,
    step_change,
    token_norms,
)
from rdbcl_jax.core.masked import masked_sum_and_count, select
from rdbcl_jax.data.pipeline import eval_batches
from rdbcl_jax.data.prompts import SupervisedBatch
from rdbcl_jax.data.records import Record
from rdbcl_jax.models import partition
from rdbcl_jax.models.interface import VLM, Params
from rdbcl_jax.models.partition import Frozen, Trained
from rdbcl_jax.rewards.scoring import score as score_texts
from rdbcl_jax.rollout.generate import generate
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.sharding import put_batch
from rdbcl_jax.snapshots import Snapshot
from rdbcl_jax.training.logprobs import compiled_logprobs, response_logprobs

KINDS = ("answer", "trace", "own", "rollout")
RESPONSE = "response"  # a record's column that holds a written solution


class Texts(NamedTuple):
    """A data set of the learning dynamics: prompts with one response each."""

    name: str
    records: list[Record]
    responses: list[str]


class Influence(NamedTuple):
    """A step on each of m training texts, seen from each of n probe texts."""

    magnitude: Float[np.ndarray, "m n"]  # ‖Δ log π‖² / (‖A‖² ‖G‖²), per η²
    change: Float[np.ndarray, "m n"]  # ‖Δ log π‖² per token of the probe, nats² per η²
    gain: Float[np.ndarray, "m n"]  # change of the probe's own log-prob per token, nats per η


# ------------------------------------------------------------------------------ data sets


def make_texts(
    kind: str,
    name: str,
    records: Sequence[Record],
    config: RunConfig,
    student: Snapshot,
    teacher: Snapshot | None = None,
) -> Texts:
    """Responses of a kind to records, as 2506.23508 compares them:

    | kind | responses |
    |---|---|
    | `answer` | the gold answer alone, without reasoning |
    | `trace` | a written solution: the record's column `response`, which built-in tasks have |
    | `own` | the first of G samples of the policy itself, right or wrong |
    | `rollout` | the first right one of G samples of the teacher, a policy after RL |

    Of the last two, samples that were cut off do not count: they have no end to learn. Records left
    without a sample are left out.

    Raises:
      ValueError: a written solution, a teacher, or any sample of the kind is missing.
    """
    records = list(records)
    if kind == "answer":
        return Texts(name, records, [f"<answer> {r.answer} </answer>" for r in records])
    if kind == "trace":
        return Texts(name, records, [_written(record) for record in records])
    sampler = student if kind == "own" else teacher
    if sampler is None:
        raise ValueError("kind 'rollout' needs --teacher=POLICY, whose right samples it takes")
    found = []
    for record, group in zip(records, sample_texts(config, sampler, records), strict=True):
        if kind == "rollout":
            right = score_texts([record] * len(group), group).accuracy
            group = [text for text, good in zip(group, right, strict=True) if good]
        found += [(record, text) for text in group[:1]]
    if not found:
        what = "finishes" if kind == "own" else "solves"
        raise ValueError(f"{name}: {sampler.name} {what} none of its {len(records)} records")
    return Texts(name, [record for record, _ in found], [text for _, text in found])


def _written(record: Record) -> str:
    if RESPONSE in record.columns:
        return record.columns[RESPONSE]
    raise ValueError(
        f"record {record.id!r} has no written solution; give its file a column {RESPONSE!r}"
    )


def sample_texts(
    config: RunConfig, snapshot: Snapshot, records: Sequence[Record]
) -> list[list[str]]:
    """Those of G samples of a policy to each record that end by themselves."""
    policy, texts = snapshot.policy, []
    for batch in generate(
        policy,
        snapshot.params,
        records,
        sampling_of(policy, config.rollout),
        jax.random.key(config.seed),
        batch_size=config.rollout.prompts,
        samples=config.rollout.samples,
    ):
        rollouts = batch.host_rollouts()
        arrays = (rollouts.tokens, rollouts.mask, rollouts.finished)
        for tokens, mask, finished in zip(*(a[batch.valid] for a in arrays), strict=True):
            texts.append(policy.texts(tokens[finished], mask[finished]) if finished.any() else [])
    return texts


def perplexity(config: RunConfig, snapshot: Snapshot, texts: Texts) -> float:
    """exp(mean over all tokens of −log π): ≥ 1; end tokens count."""
    total = np.zeros(2)
    for batch, valid in _batches(config, snapshot, texts):
        logps = compiled_logprobs(
            snapshot.policy.model,
            snapshot.params,
            put_batch(batch.prompts, snapshot.policy.mesh),
            batch.tokens,
            batch.mask,
            temperature=1.0,
            chunk_size=config.training.chunk_size,
        )
        mask = batch.mask & valid[:, None, None]
        total += [float(value) for value in masked_sum_and_count(-logps, mask)]
    return float(np.exp(total[0] / total[1]))


# ------------------------------------------------------------------------------ influence


def measure_influence(
    config: RunConfig, snapshot: Snapshot, train: Texts, probes: Sequence[Texts]
) -> list[Influence]:
    """Of every training text alone on every text of each probe set, to first order in η.

    One backward pass per training text and one directional derivative per probe batch; A of every
    probe text is that of the policy before any step, and G that of the summed −log π.
    """
    policy, size = snapshot.policy, config.training.chunk_size
    model = _differentiable(policy.model)
    batches = [[b for b, _ in _batches(config, snapshot, probe)] for probe in probes]
    norms = [
        np.concatenate([_norms(model, snapshot.params, b, size)[0] for b in group])
        for group in batches
    ]
    rows: list[list[list[ArrayLike]]] = [[] for _ in probes]
    for one in _singles(snapshot, train):
        gradient = _gradient(model, snapshot.learned, policy.frozen, one, size)
        residual = _norms(model, snapshot.params, one, size)[1][0]
        for i, group in enumerate(batches):
            parts = [
                _first_order(model, snapshot.learned, policy.frozen, gradient, b, size)
                for b in group
            ]
            squared, chosen = (np.concatenate(part) for part in zip(*parts, strict=True))
            rows[i].append([influence(squared, norms[i], residual), squared, chosen])
    results = []
    for probe, group, found in zip(probes, batches, rows, strict=True):
        n, lengths = len(probe.records), np.concatenate([b.mask.sum((1, 2)) for b in group])
        magnitude, squared, chosen = np.array(found, np.float64).swapaxes(0, 1)[..., :n]
        results.append(Influence(magnitude, squared / lengths[:n], chosen / lengths[:n]))
    return results


def step_deviation(
    config: RunConfig, snapshot: Snapshot, train: Texts, probe: Texts, *, length: float
) -> float:
    """Relative difference of ‖Δ log π‖ of a real step on the first training text from the first-
    order one, over a batch of probe texts.

    Args:
      length: of the step, ‖Δθ‖ / ‖θ‖. It should be small, but 1e-5 is the resolution of float32.
    """
    policy, size = snapshot.policy, config.training.chunk_size
    model = _differentiable(policy.model)
    one = next(_singles(snapshot, train))
    batch = next(iter(_batches(config, snapshot, probe)))[0]
    gradient = _gradient(model, snapshot.learned, policy.frozen, one, size)
    eta = length * float(_norm(snapshot.learned) / _norm(gradient))
    args = model, snapshot.learned, policy.frozen, gradient, batch, size
    exact, real = _first_order(*args)[0].sum(), _real_step(*args, eta)[0].sum()
    return float(abs(np.sqrt(real / exact) / eta - 1))


def _differentiable(model: VLM) -> VLM:
    """XLA's attention: the backward passes of other kernels cannot be transposed."""
    return dataclasses.replace(model, attention="xla")


def _batches(config: RunConfig, snapshot: Snapshot, texts: Texts):
    def encode(items, ids):
        records, responses = zip(*items, strict=True)
        return snapshot.policy.encoder.encode_supervised(records, responses)

    pairs = list(zip(texts.records, texts.responses, strict=True))
    return eval_batches(pairs, encode, config.rollout.prompts)


def _singles(snapshot: Snapshot, texts: Texts):
    for record, response in zip(texts.records, texts.responses, strict=True):
        yield snapshot.policy.encoder.encode_supervised([record], [response])


@functools.partial(jax.jit, static_argnames=("model", "chunk_size"))
def _gradient(
    model: VLM, learned: Trained, frozen: Frozen, batch: SupervisedBatch, chunk_size: int
) -> Trained:
    """Of −log π of the batch's texts, summed, in the parameters that learn: J(x_u)ᵀ G(x_u)."""

    def loss(learned):
        logps = response_logprobs(
            model,
            partition.join(learned, frozen),
            *batch,
            temperature=1.0,
            chunk_size=chunk_size,
        )
        return -select(logps, batch.mask).sum()

    return jax.grad(loss)(learned)


def _states(model: VLM, params: Params, batch: SupervisedBatch) -> tuple[Array, Array]:
    """Hidden states and head, float32: all that the log-probs depend on."""
    states = model.response_hidden(params, *batch), model.lm_head(params)
    return jax.tree.map(lambda a: a.astype(jnp.float32), states)


@functools.partial(jax.jit, static_argnames=("model", "chunk_size"))
def _norms(model: VLM, params: Params, batch: SupervisedBatch, chunk_size: int):
    """‖A‖² and ‖G‖² of each text, [rows]."""
    norms = token_norms(*_states(model, params, batch), batch.tokens, chunk_size=chunk_size)
    return _per_text(norms, batch)


@functools.partial(jax.jit, static_argnames=("model", "chunk_size"))
def _first_order(model: VLM, learned, frozen, gradient, batch, chunk_size: int):
    """Per text: squared norm of Δ log π, and Δ of its own log-prob; per unit of η."""

    def states(learned):
        return _states(model, partition.join(learned, frozen), batch)

    descent = jax.tree.map(jnp.negative, gradient)
    (hidden, head), (hidden_rate, head_rate) = _derivative(states, learned, descent)
    change = first_order_change(
        hidden, head, hidden_rate, head_rate, batch.tokens, chunk_size=chunk_size
    )
    return _per_text(change, batch)


def _derivative(function, at, along):
    """(function(at), its derivative in a direction), by transposing the backward pass, which is
    linear: `jax.jvp` refuses functions with backward passes of their own, as in `models.layers`."""
    value, pull_back = jax.vjp(function, at)
    push_forward = jax.linear_transpose(lambda cotangent: pull_back(cotangent)[0], value)
    return value, push_forward(along)[0]


@functools.partial(jax.jit, static_argnames=("model", "chunk_size"))
def _real_step(model: VLM, learned, frozen, gradient, batch, chunk_size: int, eta):
    """The same of a real step of size `eta`, not divided by it."""
    moved = jax.tree.map(lambda p, g: p - eta * g, learned, gradient)
    before, after = (_states(model, partition.join(p, frozen), batch) for p in (learned, moved))
    change = step_change(*before, *after, batch.tokens, chunk_size=chunk_size)
    return _per_text(change, batch)


def _per_text(values: TokenChange, batch: SupervisedBatch) -> list[Array]:
    return [select(value, batch.mask).sum((1, 2)) for value in values]


def _norm(tree: Trained) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))
