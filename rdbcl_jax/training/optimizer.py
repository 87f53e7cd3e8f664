"""The optimizer and its learning-rate schedules."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rdbcl_jax.config import OptimizerConfig
from rdbcl_jax.models import partition
from rdbcl_jax.training.rounding import held_in


def learning_rate(
    options: OptimizerConfig, updates: int, peak: float | None = None
) -> optax.Schedule:
    """Of the n-th update, from 1: linear warm-up to `peak` (default: `options.learning_rate`), then

    `constant`; `cosine` or `linear`: decay over all `updates`; `tail`: constant, then linear decay
    over the last 40 %. An update that is left out does not count.

    Of N updates and W of warm-up, the first after it still has the peak and the last is one step
    short of 0, which would be wasted: with progress p = (n − W − 1) / (N − W), `linear` is 1 − p
    of the peak and `cosine` (1 + cos πp) / 2, as in Hugging Face's schedules (whose warm-up begins
    at 0, ours at 1/W).
    """
    peak = options.learning_rate if peak is None else peak
    warmup = options.warmup_steps
    rest = max(updates - warmup, 1)
    tail = int(0.4 * updates)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "tail": lambda: optax.linear_schedule(peak, 0.0, max(tail, 1), max(rest - tail, 0)),
    }
    warm = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([warm, after[options.schedule]()], [warmup + 1])


def make_optimizer(
    options: OptimizerConfig, updates: int, param_dtype: str = "float32", seed: int = 0
) -> optax.GradientTransformation:
    """`adamw` or `muon`, with clipping by global norm, for so many updates of parameters that are
    held in `param_dtype`. It computes in float32, and so are the updates. `seed`: of the rounding.

    `muon` (with AdamW at `adam_learning_rate` for what is not a matrix) is for models trained from
    scratch; `adamw` for fine-tuning. With either no norm, bias or embedding decays: Muon itself
    decays nothing but the kernels, which are its share.
    """

    if options.moments_dtype != "float32" or param_dtype != "float32":
        plain = dataclasses.replace(options, moments_dtype="float32")
        return held_in(make_optimizer(plain, updates), jnp.dtype(options.moments_dtype), seed)

    def rate(peak):  # counted from 1: the first step of a warm-up already moves
        schedule = learning_rate(options, updates, peak)
        return lambda count: schedule(count + 1)

    if options.name == "adamw":
        inner = optax.adamw(
            rate(options.learning_rate),
            options.b1,
            options.b2,
            weight_decay=options.weight_decay,
            mask=decaying,
        )
    else:
        inner = optax.contrib.muon(
            rate(options.learning_rate),
            adam_learning_rate=rate(options.adam_learning_rate or options.learning_rate),
            adam_b1=options.b1,
            adam_b2=options.b2,
            weight_decay=options.weight_decay,
            muon_weight_dimension_numbers=_matrices,
        )
    clip = optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity()
    return optax.chain(clip, inner)


def decaying(params):
    """True for every parameter whose weights decay: kernels and adapters. Norms, biases and
    embeddings, of tokens or of positions, are left alone."""
    return partition.select(params, r"(^|/)(kernel|\w*_projection_weight|lora_[ab])$")


def _matrices(params):
    """Muon's share: kernels, by their last two axes, since layers are stacked on the first."""

    def axes(path, leaf):
        is_kernel = str(getattr(path[-1], "key", "")) == "kernel"
        return (
            optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if is_kernel else None
        )

    return jax.tree_util.tree_map_with_path(axes, params)
