"""A family without vision, the shared decoder alone, against torch's own implementation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from oracle import Pair, checkpoint, processed, worst
from safetensors.numpy import load_file

from rdbcl_jax.models import from_pretrained, lora, partition, save_pretrained
from rdbcl_jax.models.kv_cache import empty_cache, grow
from rdbcl_jax.models.lora import LoRA
from rdbcl_jax.sharding import make_mesh

MODELS = {
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
SIZES = dict(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    bos_token_id=0,
    eos_token_id=1,
)
ROWS = processed(([9], "left"), ([5], "right"), ([7], "left"))
PROMPTS = processed(([9], "left"), ([5], "left"), ([7], "left"))
G, T = 2, 4
families = pytest.mark.parametrize("family", MODELS)


def torch_model(family, tied=False):
    config_class, model_class = MODELS[family]
    wide = {"head_dim": 12} if family == "qwen3" else {}  # not hidden_size / heads
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, **wide, tie_word_embeddings=tied)).eval()
    for parameter in model.parameters():
        scale = 0.1 if parameter.ndim == 1 else 0.5 * parameter.shape[-1] ** -0.5
        parameter.data += scale * torch.randn_like(parameter)
    model.tie_weights()
    return model


@functools.cache
def pair(family, tied=False):
    model = torch_model(family, tied)
    path = checkpoint(model)
    return Pair(model, path, *from_pretrained(path, dtype="float32"))


def torch_logits(model, inputs):
    return model(**{name: torch.tensor(array) for name, array in inputs.items()}).logits


@families
@pytest.mark.parametrize("tied", [False, True])
def test_logits(family, tied):
    models = pair(family, tied)
    with torch.no_grad():
        expected = torch_logits(models.torch_model, ROWS).numpy()
    found = models.model.logits(models.params, **ROWS)
    assert found.dtype == jnp.float32
    assert worst(found, expected, ROWS["attention_mask"]) <= 1e-4


def sum_of_logps(logits, tokens, mask):
    logps = jax.nn.log_softmax(logits[:, :-1], -1)
    chosen = jnp.take_along_axis(logps, tokens[:, 1:, None], -1)[..., 0]
    return jnp.sum(chosen * mask[:, 1:] * mask[:, :-1])


def gradient(model, params, prompts):
    def loss(params):
        hidden, _ = model.prefill(params, prompts)
        return sum_of_logps(hidden @ model.lm_head(params), prompts.tokens, prompts.mask)

    return jax.jit(jax.grad(loss))(params)


def torch_gradients(model):
    """In the structure of our parameters: read from a checkpoint that holds them."""
    tokens, mask = (torch.tensor(ROWS[name]) for name in ("input_ids", "attention_mask"))
    logps = torch.log_softmax(torch_logits(model, ROWS)[:, :-1], -1)
    chosen = logps.gather(-1, tokens[:, 1:, None])[..., 0]
    (chosen * mask[:, 1:] * mask[:, :-1]).sum().backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    return from_pretrained(checkpoint(model), dtype="float32")[1]


@families
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_every_parameter(family, tied):
    models = pair(family, tied)
    found = gradient(models.model, models.params, models.model.prepare(**ROWS))
    errors = jax.tree.map(worst, found, torch_gradients(torch_model(family, tied)))
    assert max(jax.tree.leaves(errors)) <= 1e-3


@families
@pytest.mark.parametrize("tied", [False, True])
def test_checkpoints_have_the_published_layout(family, tied, tmp_path):
    models = pair(family, tied)
    save_pretrained(tmp_path, models.model, models.params)
    found, expected = (load_file(path / "model.safetensors") for path in (tmp_path, models.path))
    assert "model.layers.2.self_attn.q_proj.weight" in found
    assert ("lm_head.weight" in found) != tied
    assert ("model.layers.0.self_attn.q_norm.weight" in found) == (family == "qwen3")
    assert ("model.layers.0.self_attn.q_proj.bias" in found) == (family == "qwen2")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, expected[name], name)
    _, report = MODELS[family][1].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())


# ------------------------------------------------------------------- prompts with responses


def responses():
    tokens = np.random.default_rng(1).integers(0, 90, (3, G, T)).astype(np.int32)
    mask = np.arange(T) < np.array([[4, 2], [1, 4], [3, 3]])[..., None]
    return tokens, mask


def with_responses(g):
    tokens, mask = responses()
    return {
        "input_ids": np.concatenate([PROMPTS["input_ids"], tokens[:, g]], 1),
        "attention_mask": np.concatenate([PROMPTS["attention_mask"], mask[:, g]], 1),
    }


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
    cache = grow(empty_cache(prompt_cache, G), T)
    decode = jax.jit(model.decode)
    for t in range(T):
        position = prompts.next_position + t
        hidden, cache = decode(params, tokens[..., t], position, prompt_cache, cache, t)
        assert worst(hidden @ model.lm_head(params), expected[:, :, t], mask[..., t]) <= 1e-4


@families
def test_shared_prefix_equals_copies_of_the_prompt(family):
    models = pair(family)
    model = models.model
    tokens, mask = responses()
    rows = [with_responses(g) for g in range(G)]
    copies = model.prepare(**{k: np.concatenate([r[k] for r in rows]) for k in rows[0]})
    weights = np.random.default_rng(2).normal(size=(3, G, T, 32)) * mask[..., None]

    def shared(params):
        hidden = model.response_hidden(params, model.prepare(**PROMPTS), tokens, mask)
        return jnp.sum(hidden * weights), hidden

    def copied(params):
        hidden = model.prefill(params, copies)[0][:, -T - 1 : -1]
        hidden = jnp.moveaxis(hidden.reshape(G, 3, T, -1), 0, 1)
        return jnp.sum(hidden * weights), hidden

    grads, hidden = jax.jit(jax.grad(shared, has_aux=True))(models.params)
    expected_grads, expected = jax.jit(jax.grad(copied, has_aux=True))(models.params)
    assert worst(hidden, expected, mask) <= 1e-4
    assert max(jax.tree.leaves(jax.tree.map(worst, grads, expected_grads))) <= 1e-4


# ------------------------------------------------------------------- what the engine does to it


@families
def test_adapters_merge_and_are_the_layers_matrices_by_default(family, tmp_path):
    models = pair(family)
    model, params = lora.add(models.model, models.params, LoRA(3, 5.0), jax.random.key(0))
    adapters, base = partition.split(params, partition.ADAPTERS)
    assert len(jax.tree.leaves(adapters)) == 2 * 7
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda a: np.float32(0.2 * rng.normal(size=a.shape)), adapters)
    params = partition.join(adapters, base)
    found = model.logits(params, **ROWS)
    mask = ROWS["attention_mask"]
    assert worst(found, models.model.logits(models.params, **ROWS), mask) > 0.05
    save_pretrained(tmp_path, model, params)
    theirs = MODELS[family][1].from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert worst(found, torch_logits(theirs, ROWS).numpy(), mask) <= 1e-4


@families
def test_recomputing_layers_changes_no_gradient(family):
    models = pair(family)
    prompts = models.model.prepare(**ROWS)
    expected = gradient(models.model, models.params, prompts)
    for remat in ("full", "dots"):
        model = dataclasses.replace(models.model, remat=remat)
        found = gradient(model, models.params, prompts)
        assert max(jax.tree.leaves(jax.tree.map(worst, found, expected))) <= 1e-4


@families
def test_sharded_over_eight_devices(family):
    models = pair(family)
    model, params = from_pretrained(models.path, dtype="float32", mesh=make_mesh(2, 2, 2))
    kernel = params["language_model"]["layers"]["self_attn"]["q_proj"]["kernel"]
    assert tuple(kernel.sharding.spec) == (None, "fsdp", "tensor")
    embedding = params["language_model"]["embed_tokens"]["embedding"]
    assert tuple(embedding.sharding.spec) == ("tensor", "fsdp")
    expected = models.model.logits(models.params, **ROWS)
    assert worst(model.logits(params, **ROWS), expected, ROWS["attention_mask"]) <= 1e-5
