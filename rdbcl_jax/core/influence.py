"""Learning dynamics (2506.23508): how a step on one text moves the predictions on another.

A gradient step of size η on a text x_u changes the log-probs of all V tokens at each position of a
text x_v, to first order in η, by

    Δ log π(x_v) = −η · A(x_v) · K(x_v, x_u) · G(x_u)

with A = I − 1πᵀ (log-softmax's Jacobian), K the empirical neural tangent kernel of the logits, and
G the gradient of the loss at the logits of x_u. K = J(x_v) J(x_u)ᵀ is never made: the gradient of
the loss is J(x_u)ᵀ G(x_u) by one backward pass, and the forward derivative along it gives the whole
product. The functions below do its last part, the LM head, for a chunk of tokens at a time: the
largest array is [chunk_size, V].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class TokenChange(NamedTuple):
    """How the prediction at each position changes."""

    squared: Float[Array, "*B T"]  # squared norm over the vocabulary of the change of log-probs
    chosen: Float[Array, "*B T"]  # change of the given token's log-prob, nats


class TokenNorms(NamedTuple):
    """Squared Frobenius norms at each position."""

    projection: Float[Array, "*B T"]  # of A = I − 1πᵀ [V, V]: V − 2 + V Σ π²
    residual: Float[Array, "*B T"]  # of π − onehot(token) [V]: G of −log π(token)


def first_order_change(
    hidden: Float[Array, "*B T D"],
    lm_head: Float[Array, "D V"],
    hidden_rate: Float[Array, "*B T D"],
    lm_head_rate: Float[Array, "D V"],
    tokens: Int[Array, "*B T"],
    *,
    chunk_size: int,
) -> TokenChange:
    """The change per unit of η, when hidden states and head change at the given rates.

    Args:
      hidden, lm_head: log-probs are log softmax(hidden · lm_head).
      hidden_rate, lm_head_rate: their derivatives along the step, as `jax.jvp` gives them.
      tokens: the text's own tokens, in [0, V).
      chunk_size: positions whose [V] exist at one time.
    """

    def change(h, dh):
        return jax.jvp(_log_probs, (h, lm_head), (dh, lm_head_rate))[1]

    return _change(change, (hidden, hidden_rate), tokens, chunk_size)


def step_change(
    hidden: Float[Array, "*B T D"],
    lm_head: Float[Array, "D V"],
    new_hidden: Float[Array, "*B T D"],
    new_lm_head: Float[Array, "D V"],
    tokens: Int[Array, "*B T"],
    *,
    chunk_size: int,
) -> TokenChange:
    """The change from one set of hidden states and head to another: before and after a real step.

    Args:
      hidden, lm_head: before the step; log-probs are log softmax(hidden · lm_head).
      new_hidden, new_lm_head: after it.
      tokens: the text's own tokens, in [0, V).
      chunk_size: positions whose [V] exist at one time.
    """

    def change(h, new):
        return _log_probs(new, new_lm_head) - _log_probs(h, lm_head)

    return _change(change, (hidden, new_hidden), tokens, chunk_size)


def token_norms(
    hidden: Float[Array, "*B T D"],
    lm_head: Float[Array, "D V"],
    tokens: Int[Array, "*B T"],
    *,
    chunk_size: int,
) -> TokenNorms:
    """‖A‖² and ‖G‖² at each position, of the loss −log π(token) with weight 1."""
    vocabulary = lm_head.shape[1]

    def norms(h, token):
        logps = _log_probs(h, lm_head)
        squares = jnp.exp(2 * logps).sum()
        projection = vocabulary - 2 + vocabulary * squares
        return projection, squares - 2 * jnp.exp(logps[token]) + 1

    return TokenNorms(*_per_token(norms, (hidden, tokens), chunk_size))


def influence(
    change: Float[Array, "*n"], projection: Float[Array, "*n"], residual: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """Magnitude ‖Δ log π(x_v)‖² / (‖A(x_v)‖² ‖G(x_u)‖²), per η²: what K alone makes of a step.

    Args:
      change: ‖Δ log π(x_v)‖², summed over positions; nats².
      projection: ‖A(x_v)‖².
      residual: ‖G(x_u)‖², positive.
    """
    return change / (projection * residual)


def _log_probs(hidden, lm_head):
    return jax.nn.log_softmax(jnp.matmul(hidden, lm_head, preferred_element_type=jnp.float32))


def _change(change: Callable, states, tokens, chunk_size) -> TokenChange:
    def summary(a, b, token):
        delta = change(a, b)
        return jnp.square(delta).sum(), delta[token]

    return TokenChange(*_per_token(summary, (*states, tokens), chunk_size))


def _per_token(function: Callable, arrays, chunk_size: int):
    """`function` at every position of [*B, T, …] arrays, `chunk_size` positions at a time."""
    shape = arrays[-1].shape
    flat = tuple(a.reshape(-1, *a.shape[len(shape) :]) for a in arrays)
    out = jax.lax.map(lambda row: function(*row), flat, batch_size=chunk_size)
    return jax.tree.map(lambda a: a.reshape(shape), out)
