"""The influence of one text on another against explicit kernels and hand numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax.core.influence import first_order_change, influence, step_change, token_norms

D, V, T = 5, 7, 6


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def state():
    tokens = np.random.default_rng(3).integers(0, V, T)
    return draw(0, T, D), draw(1, D, V), tokens


def test_norms_by_hand():
    hidden, head = jnp.zeros((1, D)), jnp.zeros((D, 2))
    norms = token_norms(hidden, head, jnp.array([0]), chunk_size=1)
    # π = (½, ½): A = [[½, −½], [−½, ½]], π − e₀ = (−½, ½)
    assert norms.projection.item() == 1.0 and norms.residual.item() == 0.5
    assert influence(jnp.array(3.0), jnp.array(4.0), jnp.array(0.5)) == 1.5


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_norms_of_the_explicit_matrices(state, chunk_size):
    hidden, head, tokens = state
    norms = token_norms(hidden, head, tokens, chunk_size=chunk_size)
    pi = np.asarray(jax.nn.softmax(hidden @ head))
    for t in range(T):
        a = np.eye(V) - np.ones((V, 1)) @ pi[t][None]
        g = pi[t] - np.eye(V)[tokens[t]]
        np.testing.assert_allclose(norms.projection[t], np.square(a).sum(), rtol=1e-5)
        np.testing.assert_allclose(norms.residual[t], np.square(g).sum(), rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_a_linear_model_whose_kernel_is_known(chunk_size):
    """logits = φ(x) · W: K(x_v, x_u) = (φ_v · φ_u) I, so Δ = −A (φ_v · φ_u) G."""
    features_u, features_v, head = draw(0, 3, D), draw(1, 2, 4, D), draw(2, D, V)
    target, tokens = np.array([1, 0, 6]), np.array([[0, 1, 2, 3], [6, 5, 4, 3]])

    def loss(head):
        return -jax.nn.log_softmax(features_u @ head)[np.arange(3), target].sum()

    found = first_order_change(
        features_v,
        head,
        np.zeros_like(features_v),
        -jax.grad(loss)(head),
        tokens,
        chunk_size=chunk_size,
    )
    g = np.asarray(jax.nn.softmax(features_u @ head)) - np.eye(V)[target]  # [3, V]
    for b, t in np.ndindex(2, 4):
        pi = np.asarray(jax.nn.softmax(features_v[b, t] @ head))
        a = np.eye(V) - np.ones((V, 1)) @ pi[None]
        delta = -a @ sum(features_v[b, t] @ features_u[s] * g[s] for s in range(3))
        np.testing.assert_allclose(found.squared[b, t], np.square(delta).sum(), rtol=1e-4)
        np.testing.assert_allclose(found.chosen[b, t], delta[tokens[b, t]], rtol=1e-4, atol=1e-4)


def test_a_chunk_of_positions_is_made_at_one_time_and_in_float32(state):
    hidden, head, tokens = state
    half, half_head = hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    calls = {
        token_norms: (half, half_head, tokens),
        step_change: (half, half_head, half, half_head, tokens),
        first_order_change: (half, half_head, half, half_head, tokens),
    }
    for function, args in calls.items():
        traced = jax.make_jaxpr(lambda *a, f=function: f(*a, chunk_size=4))(*args)
        assert f"f32[4,{V}]" in str(traced) and f"[{T},{V}]" not in str(traced)


def test_a_real_step_is_the_first_order_change_and_an_error_that_vanishes(state):
    hidden, head, tokens = state
    rates = draw(4, T, D), draw(5, D, V)
    exact = first_order_change(hidden, head, *rates, tokens, chunk_size=4)
    errors = []
    for eta in (0.02, 0.01):
        moved = hidden + eta * rates[0], head + eta * rates[1]
        step = step_change(hidden, head, *moved, tokens, chunk_size=4)
        errors.append(np.abs(step.chosen / eta - exact.chosen).max())
    assert errors[0] < 0.5 and errors[0] / errors[1] == pytest.approx(2, rel=0.15)


def test_no_change_where_nothing_moves(state):
    hidden, head, tokens = state
    still = step_change(hidden, head, hidden, head, tokens, chunk_size=3)
    assert (np.asarray(still.squared) == 0).all() and (np.asarray(still.chosen) == 0).all()
    # a shift of all logits alike changes no probability: A projects it away
    shift = first_order_change(
        hidden, head, np.zeros_like(hidden), np.ones_like(head), tokens, chunk_size=3
    )
    np.testing.assert_allclose(shift.squared, 0, atol=1e-9)
