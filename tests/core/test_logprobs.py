"""Chunked log-probs: values and gradients against the full softmax, and what is in memory."""

import re

import jax
import jax.extend.core as jex_core
import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax import token_logprobs

B, T, D, V = 3, 7, 8, 50


def draw(shape=(B, T), dtype=jnp.float32, vocabulary=V):
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = jax.random.normal(keys[0], (*shape, D)).astype(dtype)
    lm_head = jax.random.normal(keys[1], (D, vocabulary)).astype(dtype)
    tokens = jax.random.randint(keys[2], shape, 0, vocabulary)
    return hidden, lm_head, tokens, jax.random.normal(keys[3], (2, *shape))


def full(hidden, lm_head, tokens, temperature=1.0):
    logits = jnp.matmul(hidden, lm_head, preferred_element_type=jnp.float32) / temperature
    logps = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logps, tokens[..., None], -1)[..., 0]
    return chosen, -(jnp.exp(logps) * logps).sum(-1)


def chunked(hidden, lm_head, tokens, **options):
    return token_logprobs(hidden, lm_head, tokens, return_entropy=True, **options)


@pytest.mark.parametrize(("chunk_size", "temperature"), [(1, 1), (7, 0.7), (10, 2), (1000, 0.7)])
def test_values_and_gradients_at_any_chunk_size(chunk_size, temperature):
    hidden, lm_head, tokens, cotangents = draw()

    def weighted(function, **options):
        def scalar(hidden, lm_head):
            outputs = function(hidden, lm_head, tokens, temperature=temperature, **options)
            return sum((c * x).sum() for c, x in zip(cotangents, outputs, strict=True)), outputs

        return jax.jit(jax.value_and_grad(scalar, (0, 1), has_aux=True))(hidden, lm_head)

    actual, expected = weighted(chunked, chunk_size=chunk_size), weighted(full)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5), actual, expected
    )


def test_float64_reference():
    hidden, lm_head, tokens, _ = draw()
    logits = np.float64(hidden) @ np.float64(lm_head)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(logps, np.asarray(tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(
        token_logprobs(hidden, lm_head, tokens, chunk_size=5), expected, rtol=1e-5, atol=1e-6
    )


def test_bfloat16_inputs_accumulate_in_float32():
    hidden, lm_head, tokens, cotangents = draw(dtype=jnp.bfloat16)
    logps, entropies = chunked(hidden, lm_head, tokens, chunk_size=4)
    assert logps.dtype == entropies.dtype == jnp.float32
    np.testing.assert_allclose(logps, full(hidden, lm_head, tokens)[0], rtol=1e-5, atol=1e-5)
    loss = lambda f, w: (cotangents[0] * f(hidden, w, tokens)[0]).sum()  # noqa: E731
    gradient = jax.grad(lambda w: loss(lambda *a: chunked(*a, chunk_size=4), w))(lm_head)
    assert gradient.dtype == jnp.bfloat16
    expected = jax.grad(lambda w: loss(full, w))(lm_head)
    np.testing.assert_allclose(np.float32(gradient), np.float32(expected), rtol=0.02, atol=0.05)


def test_large_logits_do_not_overflow():
    hidden, lm_head, tokens, _ = draw()
    logps, entropies = chunked(hidden * 1e4, lm_head, tokens, chunk_size=4)
    assert np.isfinite(logps).all() and (logps <= 0).all()
    assert np.isfinite(entropies).all() and (entropies >= 0).all()


def test_a_token_without_cotangent_adds_nothing_even_if_nan():
    hidden, lm_head, tokens, _ = draw()
    mask = jnp.arange(T) < 4
    hidden = jnp.where(mask[:, None], hidden, jnp.nan)

    def loss(hidden, lm_head):
        logps, entropies = chunked(hidden, lm_head, tokens, chunk_size=5)
        return jnp.where(mask, logps + entropies, 0).sum()

    dirty = jax.grad(loss, (0, 1))(hidden, lm_head)
    clean = jax.grad(loss, (0, 1))(jnp.nan_to_num(hidden), lm_head)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert not dirty[0][:, 4:].any()


def test_jit_vmap_and_any_leading_axes():
    hidden, lm_head, tokens, _ = draw((2, 3, 5))
    f = lambda h, w, t: token_logprobs(h, w, t, chunk_size=4)  # noqa: E731
    expected = full(hidden, lm_head, tokens)[0]
    for actual in (
        f(hidden, lm_head, tokens),
        jax.jit(f)(hidden, lm_head, tokens),
        jax.vmap(f, (0, None, 0))(hidden, lm_head, tokens),
        jax.jit(jax.vmap(f, (1, None, 1), 1))(hidden, lm_head, tokens),
        f(hidden[0, 0], lm_head, tokens[0, 0])[None, None],
    ):
        np.testing.assert_allclose(actual, expected[: len(actual), : actual.shape[1]], rtol=1e-4)
    total = lambda h, w: jax.vmap(f, (0, None, 0))(h, w, tokens).sum()  # noqa: E731
    expected = jax.jit(jax.grad(lambda h, w: full(h, w, tokens)[0].sum(), (0, 1)))(hidden, lm_head)
    actual = jax.jit(jax.grad(total, (0, 1)))(hidden, lm_head)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-4), actual, expected)


def test_traced_temperature():
    hidden, lm_head, tokens, _ = draw()
    f = jax.jit(lambda t: token_logprobs(hidden, lm_head, tokens, chunk_size=4, temperature=t))
    np.testing.assert_allclose(f(0.5), full(hidden, lm_head, tokens, 0.5)[0], rtol=1e-4)


def compiled_gradient(shape, width, vocabulary, chunk_size, argnums=(0, 1)):
    def loss(hidden, lm_head, tokens):
        options = {"chunk_size": chunk_size, "return_entropy": True}
        logps, entropies = token_logprobs(hidden, lm_head, tokens, **options)
        return jnp.exp(logps).sum() + entropies.sum()

    hidden = jax.ShapeDtypeStruct((*shape, width), jnp.float32)
    lm_head = jax.ShapeDtypeStruct((width, vocabulary), jnp.float32)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    return jax.jit(jax.value_and_grad(loss, argnums)).lower(hidden, lm_head, tokens).compile()


def test_the_logits_are_never_in_memory():
    """V of Qwen2.5 at a small width: the compiler's own account of the compiled gradient."""
    shape, width, vocabulary, chunk_size = (8, 256), 8, 151_936, 64
    compiled = compiled_gradient(shape, width, vocabulary, chunk_size)
    chunk, head = 4 * chunk_size * vocabulary, 4 * width * vocabulary
    logits = 4 * shape[0] * shape[1] * vocabulary  # 1.2 GB
    memory = compiled.memory_analysis().temp_size_in_bytes
    assert memory < 3 * chunk + 2 * head
    assert memory < logits / 8
    largest = max(
        int(np.prod([int(n) for n in dims.split(",")]))
        for dims in re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
    )
    tiles = 1.01 if jax.default_backend() == "gpu" else 1  # a GPU takes whole ones
    assert largest <= tiles * chunk_size * vocabulary


def test_the_logits_are_made_twice_and_a_frozen_head_costs_no_third_product():
    products = lambda argnums: len(  # noqa: E731
        re.findall(r" dot\(", compiled_gradient((2, 64), 16, 512, 32, argnums).as_text())
    )
    assert products((0, 1)) == 4  # logits, logits again, both gradients
    assert products(0) == 3


def test_shape_errors():
    hidden, lm_head, tokens, _ = draw()
    for bad in ((hidden, lm_head.T, tokens), (hidden[:2], lm_head, tokens)):
        with pytest.raises(ValueError, match="do not fit"):
            token_logprobs(*bad, chunk_size=4)
    with pytest.raises(ValueError, match="chunk_size"):
        token_logprobs(hidden, lm_head, tokens, chunk_size=0)


def products(jaxpr):
    """All products of a program, those of its loops included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for parameter in equation.params.values():
            if isinstance(parameter, jex_core.ClosedJaxpr):
                yield from products(parameter.jaxpr)


def test_products_of_the_gradient_are_in_bfloat16_where_the_inputs_are():
    """In float32 they would take twice the memory and, on a TPU, several passes."""
    hidden, lm_head, tokens, _ = draw(dtype=jnp.bfloat16)

    def loss(hidden, lm_head):
        return token_logprobs(hidden, lm_head, tokens, chunk_size=7).sum()

    found = [*products(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, lm_head).jaxpr)]
    assert len(found) == 4  # logits, logits made again, and the two gradients
    for equation in found:
        assert [a.aval.dtype for a in equation.invars] == [jnp.bfloat16] * 2
        assert equation.outvars[0].aval.dtype == jnp.float32
