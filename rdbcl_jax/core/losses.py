"""The clipped policy-gradient loss with a per-sample KL anchor, and its metrics.

`policy_loss` is the loss of one batch. `policy_loss_terms` is the same before the division: sums
and counts, which add over micro-batches, so that gradient accumulation is exact:

    terms = jax.tree.map(jnp.add, policy_loss_terms(*first), policy_loss_terms(*second))
    loss, metrics = mean_terms(terms)  # = policy_loss of both in one batch

(for gradients: add the gradients of `loss_sum`, divide once by the summed `normaliser`).

Names of metrics are TRL's wherever TRL has the metric.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdbcl_jax.core.kl import KLKind, is_bounded, kl_estimate
from rdbcl_jax.core.masked import divide, masked_mean, masked_sum_and_count, select, to_float

RatioLevel = Literal["token", "sequence"]
Aggregation = Literal["sequence_mean", "token_mean", "constant"]
Surrogate = Literal["ppo", "cispo", "sapo"]
SumCount = tuple[Float[Array, ""], Float[Array, ""]]
Metrics = dict[str, Float[Array, ""]]

SAPO_TEMPERATURES = 1.0, 1.05  # of SAPO's gate, for positive advantages and the others
MAX_LOG_RATIO = 20.0  # nats; importance ratios stay within exp(±20), so no gradient overflows


class LossTerms(NamedTuple):
    """A batch's loss and metrics before division; all of it adds over micro-batches."""

    loss_sum: Float[Array, ""]
    normaliser: Float[Array, ""]
    metric_sums: dict[str, SumCount]


def mean_terms(terms: LossTerms) -> tuple[Float[Array, ""], Metrics]:
    """(loss, metrics) of summed terms: the only division; 0 where nothing was counted."""
    metrics = {name: divide(*pair) for name, pair in terms.metric_sums.items()}
    return divide(terms.loss_sum, terms.normaliser), metrics


def policy_loss(
    logps: Float[Array, "*B T"],
    old_logps: Float[Array, "*B T"] | None,
    advantages: Float[Array, "*B"] | Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    reference_logps: Float[Array, "*B T"] | None = None,
    kl_coef: float | Float[Array, ""] | Float[Array, "*B"] | Float[Array, "*B T"] = 0.0,
    kl_kind: KLKind = "k3",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio_level: RatioLevel = "token",
    surrogate: Surrogate = "ppo",
    aggregation: Aggregation = "sequence_mean",
    max_length: int | None = None,
    kl_importance_weighted: bool = False,
    entropies: Float[Array, "*B T"] | None = None,
    entropy_coef: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Clipped surrogate plus `kl_coef` times the KL to the reference; to be minimised.

    Per token, with ratio r = exp(log π_θ − log π_old) and advantage A (PPO 1707.06347 eq. 7,
    GRPO 2402.03300 eq. 3):

        −min(r · A, clip(r, 1 − clip_low, 1 + clip_high) · A) + kl_coef · KL

    The KL term is added after masking and is not clipped. Gradients flow to `logps` only. A
    sequence with an empty mask adds nothing to sums *or counts*: a batch padded with such rows has
    the loss of the batch without them. (TRL counts them in the denominators of its `grpo` and
    `dr_grpo` losses; otherwise the losses agree.) One leading axis or several, as [P, G, T].

    Args:
      logps: log π_θ of the sampled tokens, in nats.
      old_logps: the same under the policy that sampled. None: one on-policy update per batch,
        so r = 1 and the gradient is the plain policy gradient.
      advantages: one per sequence or one per token.
      mask: the response tokens. Whatever the arrays hold behind it, NaN too, has no effect.
      reference_logps: log π_ref of the same tokens; None: no KL term.
      kl_coef: ≥ 0; one, one per sequence, or one per token.
      kl_kind: `k2`, `k3` or `k3_bounded` (see `kl_estimate`).
      clip_low, clip_high: widths of the clip range below and above 1; 0.2 and 0.28 in DAPO
        (2503.14476).
      dual_clip: for A < 0, cap r at this value > 1 + clip_high (1912.09729); TRL's `delta`.
      ratio_level: `token`, or `sequence` for GSPO (2507.18071): every token has its sequence's
        geometric-mean ratio, and passes its own gradient through it (GSPO-token, eq. 14;
        GSPO's own gradient where all tokens of a sequence share an advantage). Clip ranges
        suited to it are far narrower, 3e-4 and 4e-4 in the paper.
      surrogate: `ppo`: the above. `cispo` (2506.13585, eq. 4): the ratio is clipped and held
        constant, and weighs A · log π_θ, so that no token loses its gradient. `sapo` (2511.20347):
        in place of the clip a soft gate, 4/τ · sigmoid(τ (r − 1)) · A, with τ = 1 for A > 0 and
        1.05 for the others; nothing is clipped.
      aggregation: `sequence_mean`: mean over a sequence's tokens, then over sequences (GRPO).
        `token_mean`: over all tokens (DAPO). `constant`: sum / (sequences · max_length)
        (Dr. GRPO, 2503.20783).
      max_length: in tokens, the length limit of sampling; for `constant` only.
      kl_importance_weighted: multiply the KL by the token's r, gradient included (DeepSeek-V3.2,
        2512.02556; TRL 1.16's default, there `use_bias_correction_kl`). With k3 the expected
        gradient is then that of KL(π_θ‖π_ref), also when the samples are off-policy; without,
        it is that of KL(π_ref‖π_θ), the common GRPO. With `sequence`, too, where TRL multiplies by
        the sequence's r, which gives the gradient of neither.
      entropies: of the policy's distribution at each token, nats; they carry a gradient.
      entropy_coef: ≥ 0; the loss is lowered by so many times the entropy, aggregated as the loss is
        (with `token_mean` TRL's bonus, which is the mean over tokens whatever the loss).

    Returns:
      The loss and metrics, float32 scalars: `loss` = `policy_loss` + `kl_loss`, less
      `entropy_bonus` where entropies are given; `kl` (mean over
      tokens, nats) and `kl_coef` (mean over sequences) with a reference, and
      `kl/bounded_fraction` for `k3_bounded`; `clip_ratio/low_mean`, `clip_ratio/high_mean`,
      `clip_ratio/region_mean`: fraction of tokens (of sequences, for `sequence`) clipped.

    Raises:
      ValueError: a shape that does not fit, an unknown option, `kl_kind="k1"`.
    """
    terms = policy_loss_terms(
        logps,
        old_logps,
        advantages,
        mask,
        reference_logps=reference_logps,
        kl_coef=kl_coef,
        kl_kind=kl_kind,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        ratio_level=ratio_level,
        surrogate=surrogate,
        aggregation=aggregation,
        max_length=max_length,
        kl_importance_weighted=kl_importance_weighted,
        entropies=entropies,
        entropy_coef=entropy_coef,
    )
    return mean_terms(terms)


def policy_loss_terms(
    logps: Float[Array, "*B T"],
    old_logps: Float[Array, "*B T"] | None,
    advantages: Float[Array, "*B"] | Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    reference_logps: Float[Array, "*B T"] | None = None,
    kl_coef: float | Float[Array, ""] | Float[Array, "*B"] | Float[Array, "*B T"] = 0.0,
    kl_kind: KLKind = "k3",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio_level: RatioLevel = "token",
    surrogate: Surrogate = "ppo",
    aggregation: Aggregation = "sequence_mean",
    max_length: int | None = None,
    kl_importance_weighted: bool = False,
    entropies: Float[Array, "*B T"] | None = None,
    entropy_coef: float = 0.0,
) -> LossTerms:
    """`policy_loss` before the division; see there for the arguments and errors."""
    mask = jnp.asarray(mask).astype(bool)
    _check_shape("mask", mask, jnp.shape(logps))
    logps = select(logps, mask)
    old_logps = logps if old_logps is None else _operand("old_logps", old_logps, mask, full=True)
    advantages = _operand("advantages", advantages, mask)
    weights, normaliser = _token_weights(mask, aggregation, max_length)
    ratios = functools.partial(_importance_ratio, logps, jax.lax.stop_gradient(old_logps), mask)
    ratio = ratios(ratio_level)
    if surrogate == "ppo":
        gain, low, high = _clipped_surrogate(ratio, advantages, clip_low, clip_high, dual_clip)
    elif surrogate == "cispo":
        gain, low, high = _clipped_weight(ratio, logps, advantages, clip_low, clip_high)
    elif surrogate == "sapo":
        gain, low = _soft_gate(ratio, advantages), jnp.zeros_like(mask)
        high = low
    else:
        raise ValueError(f"unknown surrogate {surrogate!r}; expected one of {get_args(Surrogate)}")
    policy_sum = -(weights * gain).sum()
    metric_sums = _clip_metrics(low, high, mask, ratio_level)
    kl_sum = jnp.zeros_like(policy_sum)
    if reference_logps is not None:
        reference = _operand("reference_logps", reference_logps, mask, full=True)
        coefficient = _operand("kl_coef", kl_coef, mask)
        kl_weight = ratios("token") if kl_importance_weighted else 1.0
        kl_sum, kl_metrics = _kl_terms(
            logps, reference, coefficient, weights, mask, kl_kind, kl_weight
        )
        metric_sums |= kl_metrics
    loss_sum = policy_sum + kl_sum
    if entropies is not None:
        bonus = entropy_coef * (weights * select(entropies, mask)).sum()
        loss_sum -= bonus
        metric_sums["entropy_bonus"] = (bonus, normaliser)
    metric_sums |= {
        "loss": (loss_sum, normaliser),
        "policy_loss": (policy_sum, normaliser),
        "kl_loss": (kl_sum, normaliser),
    }
    return LossTerms(loss_sum, normaliser, jax.lax.stop_gradient(metric_sums))


def _check_shape(name: str, value: Array, *allowed: tuple[int, ...]) -> None:
    if value.shape not in allowed:
        wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(allowed))
        raise ValueError(f"{name} has shape {list(value.shape)}; expected {wanted}")


def _operand(name: str, value, mask: Bool[Array, "*B T"], *, full: bool = False):
    """`value` as a constant [*B, T], 0 behind the mask; shorter shapes only if not `full`."""
    value = jax.lax.stop_gradient(to_float(value))
    shorter = () if full else ((), mask.shape[:-1])
    _check_shape(name, value, mask.shape, *shorter)
    if value.ndim == mask.ndim - 1 and not full:
        value = value[..., None]
    return select(jnp.broadcast_to(value, mask.shape), mask)


def _token_weights(
    mask: Bool[Array, "*B T"], aggregation: str, max_length: int | None
) -> tuple[Float[Array, "*B T"], Float[Array, ""]]:
    """Each token's weight in the loss sum, and what that sum is divided by in the end."""
    tokens = mask.astype(jnp.float32)
    lengths = tokens.sum(-1, keepdims=True)
    sequences = (lengths > 0).astype(jnp.float32).sum()
    if aggregation == "sequence_mean":
        return tokens / jnp.maximum(lengths, 1), sequences
    if aggregation == "token_mean":
        return tokens, lengths.sum()
    if aggregation == "constant":
        if not max_length or max_length < 0:
            raise ValueError(
                "aggregation='constant' divides by sequences · max_length: give max_length, the "
                f"length limit of sampling in tokens; got {max_length}"
            )
        return tokens / max_length, sequences
    raise ValueError(
        f"unknown aggregation {aggregation!r}; expected one of {get_args(Aggregation)}"
    )


def _importance_ratio(
    logps: Float[Array, "*B T"],
    old_logps: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    level: str,
) -> Float[Array, "*B T"]:
    """π_θ / π_old per token, or per sequence with token gradients passed straight through."""
    log_ratio = logps - old_logps
    if level == "sequence":
        mean = jax.lax.stop_gradient(masked_mean(log_ratio, mask, axis=-1)[..., None])
        mean = jnp.clip(mean, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        return jnp.exp(mean + (logps - jax.lax.stop_gradient(logps)))
    if level != "token":
        raise ValueError(f"unknown ratio_level {level!r}; expected one of {get_args(RatioLevel)}")
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _clipped_surrogate(ratio, advantages, clip_low, clip_high, dual_clip):
    """(min(r·A, clip(r)·A), where it is clipped low, where it is clipped high), all [*B, T].

    Written by cases, so that the gradient at r = 1 is the policy gradient for any clip range.
    """
    if dual_clip is not None and dual_clip <= 1 + clip_high:
        raise ValueError(f"dual_clip must exceed 1 + clip_high = {1 + clip_high}; got {dual_clip}")
    low = (advantages < 0) & (ratio < 1 - clip_low)
    high = (advantages > 0) & (ratio > 1 + clip_high)
    clipped = jnp.where(low, 1 - clip_low, jnp.where(high, 1 + clip_high, ratio))
    if dual_clip is not None:
        clipped = jnp.where((advantages < 0) & (ratio > dual_clip), dual_clip, clipped)
    return clipped * advantages, low, high


def _clipped_weight(ratio, logps, advantages, clip_low, clip_high):
    """(sg(clip(r)) · A · log π_θ, where r is clipped low, where it is clipped high)."""
    low, high = ratio < 1 - clip_low, ratio > 1 + clip_high
    weight = jax.lax.stop_gradient(jnp.clip(ratio, 1 - clip_low, 1 + clip_high))
    return weight * advantages * logps, low, high


def _soft_gate(ratio, advantages):
    """4/τ · sigmoid(τ (r − 1)) · A, whose gradient at r = 1 is the policy gradient."""
    temperature = jnp.where(advantages > 0, *SAPO_TEMPERATURES)
    return 4 / temperature * jax.nn.sigmoid(temperature * (ratio - 1)) * advantages


def _clip_metrics(low, high, mask: Bool[Array, "*B T"], level: str) -> dict[str, SumCount]:
    count = _sequence_sums if level == "sequence" else masked_sum_and_count
    return {
        "clip_ratio/low_mean": count(low, mask),
        "clip_ratio/high_mean": count(high, mask),
        "clip_ratio/region_mean": count(low | high, mask),
    }


def _sequence_sums(x: Array, mask: Bool[Array, "*B T"]) -> SumCount:
    """Sum of the sequences' token means, and the number of sequences that have a token."""
    return masked_sum_and_count(masked_mean(x, mask, axis=-1), mask.any(-1))


def _kl_terms(logps, reference, coefficient, weights, mask, kind, kl_weight):
    """The KL's share of the loss sum, and its metrics."""
    if kind == "k1":
        raise ValueError(
            "kl_kind='k1' cannot be a loss term: on sampled tokens the expected gradient of "
            "log π_θ − log π_ref is E[∇ log π_θ] = 0, so it adds noise and anchors nothing. Use "
            "'k3' (default), 'k2' or 'k3_bounded'."
        )
    kl = kl_estimate(logps, reference, kind) * kl_weight
    metrics = {"kl": masked_sum_and_count(kl, mask), "kl_coef": _sequence_sums(coefficient, mask)}
    if kind == "k3_bounded":
        bounded = is_bounded(logps, reference)
        metrics["kl/bounded_fraction"] = masked_sum_and_count(bounded, mask)
    return (weights * coefficient * kl).sum(), metrics
