"""The jitted update: log-probs, targets, loss, gradients and the optimizer, in one program.

An update is made only of a batch that says something, and only where it is finite:

- a loss or a gradient norm that is NaN or infinite: the update is left out and counted;
- no advantage but 0, as where all rewards of each group are equal: no signal, no step. The KL term
  anchors what is learned and is nothing to learn from: alone it is often rounding (1e-9), of which
  Adam, blind to scale, would make steps of full size. A demonstration has an advantage (1), and
  EWC's penalty is a loss of its own: with either the update is made.

What is left out changes no bit of parameters, moments and schedule.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.core.kl import kl_estimate
from rdbcl_jax.core.losses import Metrics, mean_terms
from rdbcl_jax.core.masked import divide, masked_mean, masked_sum_and_count
from rdbcl_jax.methods.method import Method
from rdbcl_jax.models import partition
from rdbcl_jax.models.interface import VLM
from rdbcl_jax.models.partition import Frozen, Trained
from rdbcl_jax.sharding import replicated, split_rows
from rdbcl_jax.training.lengths import Parts, cut_to_longest
from rdbcl_jax.training.logprobs import response_logprobs
from rdbcl_jax.training.references import with_policy
from rdbcl_jax.training.rounding import round_tree
from rdbcl_jax.training.state import OptimizerState, TrainState


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
    """Static options of the update.

    Attributes:
      temperature: the sampler's, so that log-probs are those of the sampled distribution.
      chunk_size: tokens whose logits exist at one time.
      microbatches: parts that gradients are accumulated over; the result is that of one batch.
      entropy: compute the policy's entropy for the metrics.
      seed: of the rounding of parameters that are held in bfloat16.
    """

    temperature: float = 1.0
    chunk_size: int = 1024
    microbatches: int = 1
    entropy: bool = True
    seed: int = 0


class Consolidation(NamedTuple):
    """What EWC keeps of earlier tasks: anchor and importance of every learning parameter."""

    anchor: Trained
    fisher: Trained


# (state, frozen parameters, batch, consolidation or None) -> state, metrics, per-sample values
Update = Callable[..., tuple[TrainState, dict, dict]]


def make_update(
    model: VLM,
    optimizer: optax.GradientTransformation,
    method: Method,
    config: UpdateConfig,
    state_shardings: Any = None,
    learning_rate: optax.Schedule | None = None,
) -> Update:
    """The jitted update: (state, frozen, batch) → (state, metrics, per-sample values [P, G]).

    The state, with the parameters that learn, is donated; `frozen` are those that do not, and
    cost no backward pass. Metrics are scalars under TRL's names; per-sample values are
    `advantage` (mean over tokens), with a KL term `kl` and `kl_coef`, and what the method adds
    (`rp`). `state_shardings` keeps the new state where the old one was, so that the second call
    finds the first one's program, and each process's samples with it. With a `Consolidation` as
    fourth argument, EWC's penalty is part of the loss. Where `learning_rate` is given, of the n-th
    update of a task from 1, it is among the metrics.
    """
    gradients = functools.partial(_gradients, model, method, config)
    whole = rows = None
    if state_shardings is not None:  # else a constant, such as GRPO's β, would lie whole on each
        mesh = jax.tree.leaves(state_shardings)[0].mesh
        whole, rows = replicated(mesh), split_rows(mesh)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(state_shardings, whole, rows))
    def update(
        state: TrainState,
        frozen: Frozen,
        batch: TrainBatch,
        consolidation: Consolidation | None = None,
    ):
        grads, metrics, samples = gradients(state.params, frozen, batch)
        if consolidation is not None:
            penalty, pull = _consolidate(state.params, consolidation, method.consolidation)
            grads = jax.tree.map(jnp.add, grads, pull)
            metrics["consolidation"] = penalty
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        signal = (samples["advantage"] != 0).any() | (consolidation is not None)
        state, counts = _step(optimizer, state, grads, finite, signal, config.seed)
        metrics |= {"grad_norm": norm, "no_signal": ~signal, **counts}
        if learning_rate is not None:
            metrics["learning_rate"] = learning_rate(counts["updates"] + ~(finite & signal))
        return state, metrics, samples

    return update


def _step(optimizer, state: TrainState, grads, finite, signal, seed) -> tuple[TrainState, dict]:
    """The state after an update, or as it was where one is left out; and counts of both."""
    made, opt = finite & signal, state.opt_state
    updates, inner = jax.lax.cond(
        made,
        lambda: optimizer.update(grads, opt.inner_state, state.params),
        lambda: (optax.tree.zeros_like(state.params, dtype=jnp.float32), opt.inner_state),
    )
    params = jax.tree.map(
        lambda old, new: jnp.where(made, new, old),  # not old + 0, which makes 0 of -0
        state.params,
        _moved(state.params, updates, seed, state.step),
    )
    counted = OptimizerState(
        notfinite_count=jnp.where(finite, 0, opt.notfinite_count + 1),
        last_finite=finite,
        total_notfinite=opt.total_notfinite + ~finite,
        inner_state=inner,
    )
    step = state.step + made
    counts = {
        "updates": step,
        "skipped_updates": counted.total_notfinite,
        "skipped_in_a_row": counted.notfinite_count,
    }
    return TrainState(params, counted, step), counts


def _moved(params, updates, seed, step):
    """Parameters + updates, added in float32, in the dtype of the parameters."""
    wide = jax.tree.map(lambda p, u: p.astype(jnp.float32) + u, params, updates)
    if all(p.dtype == jnp.float32 for p in jax.tree.leaves(params)):
        return wide
    return round_tree(jax.random.fold_in(jax.random.key(seed), step), wide, params)


def _consolidate(params, consolidation: Consolidation, strength: float):
    """EWC's penalty λ/2 · Σ F (θ − θ*)² (1612.00796, eq. 3) and its gradient."""
    moved = jax.tree.map(lambda p, a: (p - a).astype(jnp.float32), params, consolidation.anchor)
    pull = jax.tree.map(lambda f, d: strength * f * d, consolidation.fisher, moved)
    products = jax.tree.map(lambda g, d: (g * d).sum(), pull, moved)
    return sum(jax.tree.leaves(products)) / 2, pull


def _gradients(model, method: Method, config: UpdateConfig, params, frozen, batch):
    """Gradients of the whole batch's loss, its metrics and its per-sample values."""

    def loss(params, batch, targets):
        whole = partition.join(params, frozen)
        terms, samples = _loss_terms(model, method, config, whole, batch, targets)
        return terms.loss_sum, (terms, samples)

    gradient = functools.partial(jax.grad(loss, has_aux=True), params)

    def grad(batch, targets):
        return cut_to_longest(gradient, batch.mask, batch, targets)

    if config.microbatches == 1:
        grads, (terms, samples) = grad(batch, None)
    else:
        grads, terms, samples = _accumulate(grad, model, method, config, params, batch)
    # the normaliser counts sequences or tokens: it does not depend on the parameters
    grads = jax.tree.map(lambda g: divide(g, terms.normaliser), grads)
    _, metrics = mean_terms(terms)
    gap = samples.pop("sampler/logp_difference")
    metrics |= {
        "sampler/logp_difference/mean": gap.mean(),
        "sampler/logp_difference/max": gap.max(),
    }
    return grads, metrics | spreads(samples), samples


def spreads(samples: dict[str, Float[Array, "P G"]]) -> Metrics:
    """Mean and standard deviation of what a method says of its samples. In the order of the names:
    a set's is another in each process, and so would the program be, which is kept for later runs.
    """
    found: Metrics = {}
    for name in sorted(samples.keys() - {"kl", "advantage"}):
        found |= {f"{name}/mean": samples[name].mean(), f"{name}/std": samples[name].std()}
    return found


def _accumulate(grad, model, method: Method, config, params, batch: TrainBatch):
    """Sums gradients over micro-batches, short responses first; what looks at the whole batch is
    settled before."""
    resolved = batch
    if method.policy:
        if batch.old_logps is None:
            raise ValueError(
                f"{method.name} with several micro-batches needs old_logps: its targets read them, "
                "and are of the whole batch"
            )
        resolved = with_policy(batch, batch.old_logps)
    targets = method.targets(resolved, batch.old_logps, batch.old_entropies)

    parts = Parts.of(batch.mask, config.microbatches, model.mesh)

    def body(grads, micro):
        new, (terms, samples) = grad(*micro)
        return jax.tree.map(jnp.add, grads, new), (terms, samples)

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    grads, (terms, samples) = jax.lax.scan(body, zeros, parts.split((batch, targets)))
    terms = jax.tree.map(lambda a: a.sum(0), terms)
    return grads, terms, parts.joined(samples)


def _loss_terms(model, method: Method, config: UpdateConfig, params, batch: TrainBatch, targets):
    """`targets`: where already known; else they are computed here, from this batch."""
    scored = response_logprobs(
        model,
        params,
        batch.prompts,
        batch.tokens,
        batch.mask,
        temperature=config.temperature,
        chunk_size=config.chunk_size,
        return_entropy=config.entropy
        or method.entropy_bonus > 0
        or (method.entropies and targets is None),
    )
    logps, entropies = scored if isinstance(scored, tuple) else (scored, None)
    # one update per batch: the policy that sampled is the policy
    current = jax.lax.stop_gradient(logps)
    sampled = current if batch.old_logps is None else batch.old_logps
    batch = with_policy(batch, current)
    if targets is None:
        old = entropies if batch.old_logps is None else batch.old_entropies
        targets = method.targets(batch, sampled, jax.lax.stop_gradient(old))
    advantages = jax.lax.stop_gradient(targets.advantages)
    sampled_here = batch.mask & ~batch.demonstrated[..., None]
    gap = jnp.abs(jnp.where(sampled_here, sampled - batch.sampler_logps, 0.0))
    samples = {"sampler/logp_difference": gap.max(-1), "advantage": advantages, **targets.values}
    if advantages.ndim == batch.mask.ndim:
        samples["advantage"] = masked_mean(advantages, batch.mask, axis=-1)
    if method.reference is not None:
        kl = kl_estimate(current, batch.reference_logps, "k3")
        samples |= {"kl": masked_mean(kl, batch.mask, axis=-1), "kl_coef": targets.kl_coef}
    bonus: dict[str, Any] = {}
    if method.entropy_bonus:
        bonus = {"entropies": entropies, "entropy_coef": method.entropy_bonus}
    terms = method.loss(
        logps,
        batch.old_logps,
        advantages,
        batch.mask,
        reference_logps=batch.reference_logps,
        kl_coef=targets.kl_coef,
        **bonus,
    )
    if config.entropy:
        terms.metric_sums["entropy"] = masked_sum_and_count(entropies, batch.mask)
    return terms, samples
