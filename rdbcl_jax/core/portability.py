"""Reasoning Portability (RP) and the per-sample KL coefficients made from it.

RDB-CL (2605.18903) scales each sample's KL anchor by how reusable the previous policy's reasoning
is for it: high RP, tight anchor; low RP, relaxed anchor. The formulas below are a reconstruction:
the paper's text was not available, so kinds and mappings are options, and the controls that a
claim needs (shuffled, inverted, constant, accuracy-based) stand beside them.

Statistics are over the whole array. Under `jit` with sharded inputs that is the global batch.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from rdbcl_jax.core.masked import (
    divide,
    masked_max,
    masked_mean,
    masked_min,
    masked_rank,
    masked_sum_and_count,
    masked_variance,
    select,
    to_float,
)

PortabilityKind = Literal["ratio", "confidence"]
Mapping = Literal["sigmoid", "clip", "minmax", "rank", "constant"]

MAX_LOG_RP = 80.0  # exp of it is still finite in float32
STD_FLOOR = 0.02  # of RP; keeps `sigmoid` from amplifying noise when all samples are alike
RANGE_FLOOR = 1e-4  # of RP; the same for `minmax`


def reasoning_portability(
    policy_logps: Float[Array, "*B T"],
    reference_logps: Float[Array, "*B T"],
    span_mask: Bool[Array, "*B T"],
    *,
    kind: PortabilityKind = "ratio",
    empty_value: float = 1.0,
) -> Float[Array, "*B"]:
    """How well the previous policy's reasoning carries over to each sample (reconstruction).

    `ratio`: exp(mean over the span of log π_ref − log π_old). Exactly 1 while both are the same
    policy, as on a task's first step; falls as the policy leaves the reasoning that the previous
    one would have produced. Positive, and usually at most 1.
    `confidence`: exp(mean over the span of log π_ref), in (0, 1]: the previous policy's geometric
    mean probability per token. Informative from the first step. `policy_logps` is not read.

    Args:
      policy_logps: log-probs of the sampled tokens under the policy that sampled them.
      reference_logps: the same under the policy from before the current task.
      span_mask: the tokens to average over. The reasoning span for RP proper; the answer span
        is the negative control; both together give the response level.
      kind: `ratio` or `confidence`.
      empty_value: what a sample with an empty span gets.

    Returns:
      RP per sample, float32, without gradient. Logs are capped at 80, so it is finite.

    Raises:
      ValueError: unknown kind.
    """
    reference = select(reference_logps, span_mask)
    if kind == "ratio":
        log_ratio = reference - select(policy_logps, span_mask)
    elif kind == "confidence":
        log_ratio = reference
    else:
        raise ValueError(f"unknown kind {kind!r}; expected one of {get_args(PortabilityKind)}")
    total, count = masked_sum_and_count(log_ratio, span_mask, axis=-1)
    rp = jnp.exp(jnp.minimum(divide(total, count), MAX_LOG_RP))
    return jax.lax.stop_gradient(jnp.where(count > 0, rp, empty_value))


def kl_coefficients(
    rp: Float[Array, "*B"],
    *,
    beta_min: float,
    beta_max: float,
    mapping: Mapping = "sigmoid",
    temperature: float = 1.0,
    valid: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """The KL coefficient of each sample, β_min + (β_max − β_min) · u(RP) (reconstruction).

    | mapping    | u, in [0, 1] and non-decreasing in RP                                         |
    |------------|-------------------------------------------------------------------------------|
    | `sigmoid`  | sigmoid(z / temperature), z = (RP − mean) / max(std, 0.02) over the batch      |
    | `clip`     | RP clipped to [0, 1]: the only one that looks at the sample alone              |
    | `minmax`   | 0 at the batch's smallest RP, 1 at its largest                                 |
    | `rank`     | rank in the batch / (n − 1), ties averaged                                     |
    | `constant` | 1: every sample gets β_max, whatever its RP (the vanilla method)               |

    When all RP are equal (a `ratio` RP is 1 for all on a task's first step), `sigmoid`, `minmax`
    and `rank` say nothing about any sample and give the midpoint u = ½ to all; `clip` gives β_max
    at RP = 1. `sigmoid` and `minmax` stay near the midpoint when all RP are nearly equal (within
    0.02 and 1e-4); `rank` does not, and spreads even rounding noise over [0, 1].

    Args:
      rp: portability of each sample; several leading axes are one batch.
      beta_min, beta_max: the range of the result, 0 ≤ β_min ≤ β_max.
      temperature: positive; of `sigmoid` only. Larger is closer to the midpoint.
      valid: samples that count in the statistics; all by default. An invalid sample is mapped
        by its own RP through the valid ones' statistics. A non-finite RP is never valid, and
        is taken as 1 (as portable as an empty span).

    Returns:
      Coefficients within [beta_min, beta_max], float32, without gradient.

    Raises:
      ValueError: unknown mapping, an empty range, a temperature that is not positive.
    """
    _check_range(beta_min, beta_max)
    rp = jax.lax.stop_gradient(to_float(rp))
    finite = jnp.isfinite(rp)
    valid = finite if valid is None else finite & jnp.asarray(valid).astype(bool)
    unit = _unit(jnp.where(finite, rp, 1.0), valid, mapping, temperature)
    return jnp.clip(beta_min + (beta_max - beta_min) * unit, beta_min, beta_max)


def _unit(
    rp: Float[Array, "*B"], valid: Bool[Array, "*B"], mapping: str, temperature: float
) -> Float[Array, "*B"]:
    """`rp` mapped to [0, 1]; see `kl_coefficients`."""
    if mapping == "constant":
        return jnp.ones_like(rp)
    if mapping == "clip":
        return jnp.clip(rp, 0.0, 1.0)
    if mapping == "sigmoid":
        if isinstance(temperature, int | float) and temperature <= 0:
            raise ValueError(f"temperature must be positive; got {temperature}")
        std = jnp.sqrt(jnp.maximum(masked_variance(rp, valid), STD_FLOOR**2))
        unit = jax.nn.sigmoid((rp - masked_mean(rp, valid)) / (std * temperature))
    elif mapping == "minmax":
        low, high = masked_min(rp, valid), masked_max(rp, valid)
        middle, width = low + (high - low) / 2, jnp.maximum(high - low, RANGE_FLOOR)
        unit = jnp.clip(0.5 + (rp - middle) / width, 0.0, 1.0)
    elif mapping == "rank":
        ranks = masked_rank(rp.reshape(-1), valid.reshape(-1)).reshape(rp.shape)
        last = valid.sum() - 1
        unit = jnp.where(last > 0, jnp.clip(ranks / jnp.maximum(last, 1), 0.0, 1.0), 0.5)
    else:
        raise ValueError(f"unknown mapping {mapping!r}; expected one of {get_args(Mapping)}")
    return jnp.where(valid.any(), unit, 0.5)


def _check_range(beta_min: float, beta_max: float) -> None:
    known = all(isinstance(b, int | float) for b in (beta_min, beta_max))
    if known and not 0 <= beta_min <= beta_max:
        raise ValueError(f"need 0 <= beta_min <= beta_max; got {beta_min} and {beta_max}")


def invert_kl_coefficients(
    coefficients: Float[Array, "*B"], *, beta_min: float, beta_max: float
) -> Float[Array, "*B"]:
    """Control: β_min + β_max − β, so that high RP relaxes the anchor.

    Args:
      coefficients: β of each sample, as `kl_coefficients` gives them.
      beta_min, beta_max: the range they were made for.

    Raises:
      ValueError: an empty range.
    """
    _check_range(beta_min, beta_max)
    return jnp.clip(beta_min + beta_max - to_float(coefficients), beta_min, beta_max)


def matched_constant_kl_coefficients(
    coefficients: Float[Array, "*B"],
    valid: Bool[Array, "*B"] | None = None,
    *,
    kl: Float[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """Control: every sample gets the mean coefficient of the valid ones.

    Args:
      coefficients: β of each sample, as `kl_coefficients` gives them.
      valid: samples that count; all by default.
      kl: the KL of each sample, ≥ 0. With it the mean is weighted by KL, so that the batch has the
        same KL loss as before: coefficients that are low where the KL is high anchor less than
        their plain mean suggests. Where every KL is 0, the plain mean.
    """
    coefficients = to_float(coefficients)
    valid = jnp.ones(coefficients.shape, bool) if valid is None else valid
    mean = masked_mean(coefficients, valid)
    if kl is not None:
        weights = jax.lax.stop_gradient(to_float(kl))
        total = masked_mean(weights, valid)
        weighted = divide(masked_mean(coefficients * weights, valid), total)
        mean = jnp.where(total > 0, weighted, mean)
    return jnp.broadcast_to(mean, coefficients.shape)


def verified_kl_coefficients(
    coefficients: Float[Array, "*B"], accuracy: Float[Array, "*B"], *, beta_min: float
) -> Float[Array, "*B"]:
    """Ours: β_min + (β − β_min) · accuracy, so that only what turned out right is anchored.

    Portability is the previous policy's confidence, not its correctness.

    Args:
      coefficients: β of each sample, as `kl_coefficients` gives them.
      accuracy: the verdict on each sample, in [0, 1]; NaN: there is none, and it keeps its own.
      beta_min: the coefficient of a sample that is wrong.
    """
    accuracy = jax.lax.stop_gradient(jnp.clip(to_float(accuracy), 0.0, 1.0))
    right = jnp.where(jnp.isnan(accuracy), 1.0, accuracy)
    return beta_min + (to_float(coefficients) - beta_min) * right


def shuffle_kl_coefficients(
    key: PRNGKeyArray, coefficients: Float[Array, "*B"], valid: Bool[Array, "*B"] | None = None
) -> Float[Array, "*B"]:
    """Control: the valid samples' coefficients dealt out among them at random.

    The set of coefficients stays the same; which sample has which no longer depends on RP.

    Args:
      key: used once.
      coefficients: β of each sample, as `kl_coefficients` gives them.
      valid: samples that take part; all by default. The others keep theirs.
    """
    flat = to_float(coefficients).reshape(-1)
    valid = jnp.ones(flat.shape, bool) if valid is None else jnp.asarray(valid).reshape(-1)
    valid = valid.astype(bool)
    seats = jnp.argsort(~valid, stable=True)  # valid first; the rest keep their own seats
    dealt = jnp.argsort(jnp.where(valid, jax.random.uniform(key, flat.shape), 2.0), stable=True)
    return flat.at[seats].set(flat[dealt]).reshape(jnp.shape(coefficients))


def accuracy_kl_coefficients(
    accuracy: Float[Array, "*B"], *, beta_min: float, beta_max: float
) -> Float[Array, "*B"]:
    """Control: β_max − (β_max − β_min) · 4p(1 − p), p the accuracy of a sample's group.

    Groups of mixed outcome, which carry the gradient, get the relaxed anchor; RP is not used.

    Args:
      accuracy: p for each sample, in [0, 1].
      beta_min, beta_max: the range of the result, 0 ≤ β_min ≤ β_max.

    Raises:
      ValueError: an empty range.
    """
    _check_range(beta_min, beta_max)
    p = jax.lax.stop_gradient(jnp.clip(to_float(accuracy), 0.0, 1.0))
    return jnp.clip(beta_max - (beta_max - beta_min) * 4 * p * (1 - p), beta_min, beta_max)
