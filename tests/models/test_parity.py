"""Logits, gradients, decoding and shared prefixes against torch's own implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from oracle import FAMILIES, checkpoint, pair, processed, torch_logits, torch_model, worst

from rdbcl_jax.models import from_pretrained
from rdbcl_jax.models.kv_cache import empty_cache, grow
from rdbcl_jax.models.layers import inverse_frequencies

MANY_ROWS = processed(
    ([3, (6, 10), 4, (4, 4), 5], "right"),  # two images, text between them
    ([7], "left"),  # no image
    ([2, (10, 14), 6], "left"),
    ([(2, 22), (8, 2), 1], "right"),  # extreme aspect ratios, no text between
)

families = pytest.mark.parametrize("family", FAMILIES)


def check_logits(models, inputs, tolerance=1e-4):
    with torch.no_grad():
        expected = torch_logits(models.torch_model, inputs).numpy()
    found = models.model.logits(models.params, **inputs)
    assert found.dtype == jnp.float32
    assert worst(found, expected, inputs["attention_mask"]) <= tolerance


@families
@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_many_kinds_of_rows(family, tied):
    check_logits(pair(family, tied), MANY_ROWS)


@families
def test_logits_of_text_only_batches(family):
    check_logits(pair(family), processed(([9], "left"), ([5], "left")))


@families
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_logits_with_other_head_ratios(family, kv_heads):
    models = pair(family, text=(("num_key_value_heads", kv_heads), ("num_hidden_layers", 1)))
    check_logits(models, processed(([2, (6, 4), 3], "left")))


@pytest.mark.parametrize(
    ("window", "full"), [(24, [0]), (32, []), (8, [2]), (16, [0, 1, 2, 3]), (64, [1])]
)
def test_logits_with_other_windows(window, full):
    vision = (("window_size", window), ("fullatt_block_indexes", tuple(full)))
    models = pair("qwen2_5_vl", text=(("num_hidden_layers", 1),), vision=vision)
    check_logits(models, processed(([2, (6, 10), 1], "right"), ([(14, 4), 3], "left")))


@families
def test_bfloat16_is_as_close_to_float32_as_torchs(family):
    models = pair(family)
    model, params = from_pretrained(models.path, dtype="bfloat16")
    assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(params))
    found = model.logits(params, **MANY_ROWS)
    with torch.no_grad():
        expected = torch_logits(models.torch_model, MANY_ROWS).numpy()
        torchs = torch_logits(torch_model(family).bfloat16(), MANY_ROWS).float().numpy()
    mask = MANY_ROWS["attention_mask"]
    assert worst(found, expected, mask) <= 1.5 * worst(torchs, expected, mask)


# ------------------------------------------------------------------------------ gradients


def sum_of_logps(logits, tokens, mask):
    logps = jax.nn.log_softmax(logits[:, :-1], -1)
    chosen = jnp.take_along_axis(logps, tokens[:, 1:, None], -1)[..., 0]
    return jnp.sum(chosen * mask[:, 1:] * mask[:, :-1])


@families
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_every_parameter(family, tied):
    models = pair(family, tied)
    inputs, model = MANY_ROWS, models.model
    prompts = model.prepare(**inputs)

    @jax.jit
    @jax.grad
    def gradient(params, prompts):
        hidden, _ = model.prefill(params, prompts)
        return sum_of_logps(hidden @ model.lm_head(params), prompts.tokens, prompts.mask)

    found = gradient(models.params, prompts)
    expected = torch_gradients(torch_model(family, tied=tied), inputs)
    errors = jax.tree.map(worst, found, expected)
    bad = {jax.tree_util.keystr(k): e for k, e in jax.tree.leaves_with_path(errors) if e > 1e-3}
    assert not bad


def torch_gradients(model, inputs):
    """Gradients in the structure of our parameters: read from a checkpoint that holds them."""
    tokens, mask = torch.tensor(inputs["input_ids"]), torch.tensor(inputs["attention_mask"])
    logps = torch.log_softmax(torch_logits(model, inputs)[:, :-1], -1)
    chosen = logps.gather(-1, tokens[:, 1:, None])[..., 0]
    (chosen * mask[:, 1:] * mask[:, :-1]).sum().backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    return from_pretrained(checkpoint(model), dtype="float32")[1]


# ------------------------------------------------------------------- prompts with responses

PROMPTS = processed(([3, (6, 10), 4, (4, 4), 5], "left"), ([7], "left"), ([2, (8, 8), 6], "left"))
G, T = 2, 4


def responses(seed=1):
    tokens = np.random.default_rng(seed).integers(0, 90, (3, G, T)).astype(np.int32)
    mask = np.arange(T) < np.array([[4, 2], [1, 4], [3, 3]])[..., None]
    return tokens, mask


def with_responses(g: int):
    """The processor's arrays of prompt + response g, one row a prompt."""
    tokens, mask = responses()
    return PROMPTS | {
        "input_ids": np.concatenate([PROMPTS["input_ids"], tokens[:, g]], 1),
        "attention_mask": np.concatenate([PROMPTS["attention_mask"], mask[:, g]], 1),
    }


def copied_prompts():
    """All prompts with their first response, then all with their second."""
    rows = [with_responses(g) for g in range(G)]
    return {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}


@families
@pytest.mark.parametrize("apart", [False, True])  # layers as a stack, and as CPU decodes them
def test_decoding_step_by_step_gives_the_full_pass(family, apart):
    models = pair(family)
    model, params = models.model, models.params
    tokens, mask = responses()
    with torch.no_grad():
        rows = [torch_logits(models.torch_model, with_responses(g))[:, -T:] for g in range(G)]
        expected = np.stack(rows, 1)
    prompts = model.prepare(**PROMPTS)
    _, prompt_cache = jax.jit(model.prefill)(params, prompts)
    if apart:
        params, prompt_cache = model.for_decoding(params, prompt_cache)
        assert isinstance(prompt_cache.key, tuple)
    cache = grow(empty_cache(prompt_cache, G), T)
    decode = jax.jit(model.decode)
    for t in range(T):
        position = prompts.next_position + t
        hidden, cache = decode(params, tokens[..., t], position, prompt_cache, cache, t)
        found = hidden @ model.lm_head(params)
        assert worst(found, expected[:, :, t], mask[..., t]) <= 1e-4


@families
def test_shared_prefix_equals_copies_of_the_prompt(family):
    models = pair(family)
    model = models.model
    tokens, mask = responses()
    prompts = model.prepare(**PROMPTS)
    copies = model.prepare(**copied_prompts())
    weights = np.random.default_rng(2).normal(size=(3, G, T, 32)) * mask[..., None]

    def shared(params, prompts):
        hidden = model.response_hidden(params, prompts, tokens, mask)
        return jnp.sum(hidden * weights), hidden

    def copied(params, copies):
        hidden = model.prefill(params, copies)[0][:, -T - 1 : -1]
        hidden = jnp.moveaxis(hidden.reshape(G, 3, T, -1), 0, 1)
        return jnp.sum(hidden * weights), hidden

    grads, hidden = jax.jit(jax.grad(shared, has_aux=True))(models.params, prompts)
    expected_grads, expected = jax.jit(jax.grad(copied, has_aux=True))(models.params, copies)
    assert worst(hidden, expected, mask) <= 1e-4
    errors = jax.tree.map(worst, grads, expected_grads)
    assert max(jax.tree.leaves(errors)) <= 1e-4


def test_rotary_frequencies_are_torchs_to_the_last_bit():
    expected = 1.0 / (1e6 ** (torch.arange(0, 128, 2, dtype=torch.float) / 128))
    np.testing.assert_array_max_ulp(inverse_frequencies(128, 1e6), expected.numpy(), maxulp=1)
