"""What every family keeps, against torch's own implementation: logits, gradients,
decoding, shared prefixes, adapters, freezing, rematerialisation, sharding, checkpoints."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from rdbcl_jax.models import decoder, from_pretrained, lora, partition, save_pretrained
from rdbcl_jax.models.kv_cache import KeyValues, empty_cache, read_by_all
from rdbcl_jax.models.lora import LoRA
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.sharding import make_mesh
from tests.models.contract import (
    FAMILIES,
    case,
    check_logits,
    pair,
    processed,
    torch_logits,
    torch_model,
)
from tests.models.oracle import checkpoint, worst

families = pytest.mark.parametrize("family", FAMILIES)
with_vision = pytest.mark.parametrize("family", [f for f in FAMILIES if case(f).vision])
G, T = 2, 4


def many(family):
    return processed(family, *case(family).rows)


# ----------------------------------------------------------------------- logits and gradients


@families
@pytest.mark.parametrize("tied", [False, True])
def test_logits(family, tied):
    check_logits(pair(family, tied), many(family))


@with_vision
def test_logits_of_text_only_batches(family):
    check_logits(pair(family), processed(family, ([9], "left"), ([5], "right")))


@families
def test_bfloat16_is_as_close_to_float32_as_torchs(family):
    models, inputs = pair(family), many(family)
    model, params = from_pretrained(models.path, dtype="bfloat16")
    assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(params))
    found = model.logits(params, **inputs)
    with torch.no_grad():
        expected = torch_logits(models.torch_model, inputs).numpy()
        torchs = torch_logits(torch_model(family).bfloat16(), inputs).float().numpy()
    mask = inputs["attention_mask"]
    error = worst(found, expected, mask)
    assert error <= 1.5 * worst(torchs, expected, mask)
    # matrices are read in `dtype` alone: those held in it are as good as those held in float32
    model, stacks = dataclasses.replace(models.model, dtype="bfloat16"), model.param_axes.stacks
    wide, narrow = models.params, partition.read_in(models.params, stacks, jnp.bfloat16)
    assert {p.dtype.name for p in jax.tree.leaves(narrow)} == {"float32", "bfloat16"}
    found = model.logits(narrow, **inputs)
    assert worst(found, model.logits(wide, **inputs), mask) <= error / 10


def sum_of_logps(logits, tokens, mask):
    logps = jax.nn.log_softmax(logits[:, :-1], -1)
    chosen = jnp.take_along_axis(logps, tokens[:, 1:, None], -1)[..., 0]
    return jnp.sum(chosen * mask[:, 1:] * mask[:, :-1])


def far(found, expected, tolerance):
    """The gradients that differ by more than `tolerance` of their scale, by name."""
    errors = jax.tree.leaves_with_path(jax.tree.map(worst, found, expected))
    named = {jax.tree_util.keystr(k, simple=True, separator="/"): e for k, e in errors}
    # without rotary embeddings a key's bias shifts every score of a query alike: rounding is left
    turned = ("language_model/", "lm_head/")
    rounding = {k for k in named if k.endswith("k_proj/bias") and not k.startswith(turned)}
    return {k: e for k, e in named.items() if e > tolerance and k not in rounding}


def gradient(model, params, prompts):
    def loss(params, prompts):
        hidden, _ = model.prefill(params, prompts)
        return sum_of_logps(hidden @ model.lm_head(params), prompts.tokens, prompts.mask)

    return jax.jit(jax.grad(loss))(params, prompts)


@families
def test_gradients_of_every_parameter_however_layers_are_recomputed(family):
    inputs = many(family)
    for tied, remat in ((False, "none"), (False, "full"), (True, "dots")):
        models = pair(family, tied)
        expected = torch_gradients(torch_model(family, tied=tied), inputs)
        model = dataclasses.replace(models.model, remat=remat)
        found = gradient(model, models.params, models.model.prepare(**inputs))
        assert not far(found, expected, 1e-3)


def torch_gradients(model, inputs):
    """Gradients in the structure of our parameters: read from a checkpoint that holds them."""
    tokens, mask = torch.tensor(inputs["input_ids"]), torch.tensor(inputs["attention_mask"])
    logps = torch.log_softmax(torch_logits(model, inputs)[:, :-1], -1)
    chosen = logps.gather(-1, tokens[:, 1:, None])[..., 0]
    (chosen * mask[:, 1:] * mask[:, :-1]).sum().backward()
    for parameter in model.parameters():
        zero = torch.zeros_like(parameter)
        parameter.data = zero if parameter.grad is None else parameter.grad
    return from_pretrained(checkpoint(model), dtype="float32")[1]


# ------------------------------------------------------------------- prompts with responses


def responses(seed=1):
    tokens = np.random.default_rng(seed).integers(0, 90, (3, G, T)).astype(np.int32)
    mask = np.arange(T) < np.array([[4, 2], [1, 4], [3, 3]])[..., None]
    return tokens, mask


def with_response(family, prompts, g: int):
    """The processor's arrays of prompt + response g, one row a prompt."""
    tokens, mask = responses()
    more = {"input_ids": tokens[:, g], "attention_mask": mask[:, g]}
    if types := case(family).types:
        more[types] = np.zeros_like(tokens[:, g])
    return prompts | {
        name: np.concatenate([prompts[name], array], 1) for name, array in more.items()
    }


@families
@pytest.mark.parametrize("apart", [False, True])  # layers as a stack, and as CPU decodes them
def test_decoding_step_by_step_gives_the_full_pass(family, apart):
    models, inputs = pair(family), processed(family, *case(family).prompts)
    model, params = models.model, models.params
    tokens, mask = responses()
    with torch.no_grad():
        rows = [
            torch_logits(models.torch_model, with_response(family, inputs, g))[:, -T:]
            for g in range(G)
        ]
        expected = np.stack(rows, 1)
    prompts = model.prepare(**inputs)
    _, prompt_cache = jax.jit(model.prefill)(params, prompts)
    if apart:
        params, prompt_cache = model.for_decoding(params, prompt_cache)
        assert isinstance(prompt_cache.key, tuple)
    count = len(prompts.tokens)
    cache = empty_cache(prompt_cache, count * G, T)
    read, decode = read_by_all(prompt_cache), jax.jit(model.decode)
    for t in range(T):
        position = jnp.repeat(prompts.next_position, G) + t
        hidden, cache = decode(params, tokens[..., t].reshape(-1), position, read, cache, t)
        found = (hidden @ model.lm_head(params)).reshape(count, G, -1)
        assert worst(found, expected[:, :, t], mask[..., t]) <= 1e-4


def test_large_layers_are_not_held_twice_for_decoding(monkeypatch):
    models = pair("smolvlm")
    layers = models.params["language_model"]["layers"]
    size = sum(a.nbytes for a in jax.tree.leaves(layers))
    cache = KeyValues(jnp.zeros((2, 1)), jnp.zeros((2, 1)), jnp.zeros((1, 1), bool))
    for limit, apart in ((size, True), (size - 1, False)):
        monkeypatch.setattr(decoder, "_TAKEN_APART", limit)
        params, _ = jax.eval_shape(models.model.for_decoding, models.params, cache)
        assert isinstance(params["language_model"]["layers"], tuple) == apart


@families
def test_shared_prefix_equals_copies_of_the_prompt(family):
    models, inputs = pair(family), processed(family, *case(family).prompts)
    model, prompts = models.model, models.model.prepare(**inputs)
    tokens, mask = responses()
    weights = np.random.default_rng(2).normal(size=(3, G, T, 32)) * mask[..., None]
    copies = [model.prepare(**with_response(family, inputs, g)) for g in range(G)]

    def shared(params, prompts):
        hidden = model.response_hidden(params, prompts, tokens, mask)
        return jnp.sum(hidden * weights), hidden

    def copied(params, copies):
        hidden = jnp.stack([model.prefill(params, c)[0][:, -T - 1 : -1] for c in copies], 1)
        return jnp.sum(hidden * weights), hidden

    grads, hidden = jax.jit(jax.grad(shared, has_aux=True))(models.params, prompts)
    expected_grads, expected = jax.jit(jax.grad(copied, has_aux=True))(models.params, copies)
    assert worst(hidden, expected, mask) <= 1e-4
    assert not far(grads, expected_grads, 1e-4)
    # of a single token the prompt's last hidden state is all
    first = jax.jit(model.response_hidden)(models.params, prompts, tokens[..., :1], mask[..., :1])
    assert worst(first, expected[:, :, :1], mask[..., :1]) <= 1e-4


# ------------------------------------------------------------------- adapters, freezing, sharding


@families
def test_adapters_everywhere_export_as_what_they_compute(family, tmp_path):
    models, inputs = pair(family), many(family)
    everywhere = LoRA(rank=3, alpha=5.0, targets=r"proj|fc[12]$|linear_[12]$")
    model, params = lora.add(models.model, models.params, everywhere, jax.random.key(0))
    base = models.model.logits(models.params, **inputs)
    assert worst(model.logits(params, **inputs), base) <= 2e-6  # rounding alone
    adapters, rest = partition.split(params, partition.ADAPTERS)
    for place in case(family).vision[:1]:
        assert jax.tree.leaves(adapters[place])
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda a: np.float32(0.2 * rng.normal(size=a.shape)), adapters)
    params = partition.join(adapters, rest)
    found, mask = model.logits(params, **inputs), inputs["attention_mask"]
    assert worst(found, base, mask) > 0.05
    save_pretrained(tmp_path, model, params)
    theirs, report = case(family).model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        assert worst(found, torch_logits(theirs.eval(), inputs).numpy(), mask) <= 1e-4


@families
def test_adapters_are_the_language_models_matrices_by_default(family):
    models = pair(family)
    _, params = lora.add(models.model, models.params, LoRA(3), jax.random.key(0))
    adapters, _ = partition.split(params, partition.ADAPTERS)
    assert len(jax.tree.leaves(adapters["language_model"])) == 2 * 7
    assert len(jax.tree.leaves(adapters)) == 2 * 7


@with_vision
def test_frozen_vision_has_no_gradient_and_no_backward_pass(family):
    models = pair(family)
    model, prompts = models.model, models.model.prepare(**many(family))
    trained, frozen = partition.split(models.params, model.language_pattern)
    for place in case(family).vision:
        assert not jax.tree.leaves(trained[place])
    assert not jax.tree.leaves(frozen["language_model"])

    def loss(trained, frozen):
        return model.prefill(partition.join(trained, frozen), prompts)[0].sum()

    def flops(argnums):
        gradient = jax.jit(jax.grad(loss, argnums))
        return gradient.lower(trained, frozen).cost_analysis()["flops"]

    def see(params, prompts):
        return model.embed_prompts(params, prompts)[0]

    forward = jax.jit(see).lower(models.params, prompts).cost_analysis()["flops"]
    # the whole gradient costs the vision tower's backward pass more: about twice its forward pass
    assert flops((0, 1)) - flops(0) > 1.5 * forward
    grads = jax.eval_shape(jax.grad(loss), trained, frozen)
    assert jax.tree.structure(grads) == jax.tree.structure(trained)


@families
def test_sharded_over_eight_devices(family):
    models, inputs = pair(family), many(family)
    model, params = from_pretrained(models.path, dtype="float32", mesh=make_mesh(2, 2, 2))
    split = [p for p in jax.tree.leaves(params) if p.sharding.shard_shape(p.shape) != p.shape]
    assert sum(p.size for p in split) > 0.8 * sum(p.size for p in jax.tree.leaves(params))
    expected = models.model.logits(models.params, **inputs)
    assert worst(model.logits(params, **inputs), expected, inputs["attention_mask"]) <= 1e-5


# ------------------------------------------------------------------------------ checkpoints


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@families
@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_checkpoint_gives_transformers_the_same_greedy_tokens(family, tied, tmp_path):
    models, inputs = pair(family, tied), processed(family, *case(family).prompts)
    save_pretrained(tmp_path, models.model, models.params, shard_bytes=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(from_pretrained(tmp_path, dtype="float32")[1], models.params)
    theirs, report = case(family).model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    tensors = {name: torch.tensor(array) for name, array in inputs.items()}
    length = 8
    options = {"max_new_tokens": length, "do_sample": False, "eos_token_id": None}
    expected = theirs.eval().generate(**tensors, **options, pad_token_id=0)[:, -length:]
    prompts, sampling = models.model.prepare(**inputs), Sampling(length, greedy=True)
    rollouts = jax.jit(sample, static_argnums=0, static_argnames=("samples", "sampling"))(
        models.model, models.params, prompts, jax.random.key(0), samples=1, sampling=sampling
    )
    np.testing.assert_array_equal(rollouts.tokens[:, 0], expected.numpy())


def nested(name):
    """As some releases of transformers wrote a tensor's name, and later ones in memory."""
    name = name.replace("language_model.lm_head.", "lm_head.")
    name = name.replace("language_model.model.", "language_model.")
    name = re.sub(r"^model\.(?=layers|embed_tokens|norm)", "language_model.", name)
    return name if name.startswith(("lm_head.", "model.")) else f"model.{name}"


@with_vision
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_nested_layout_and_half_precision(family, dtype, tmp_path):
    models = pair(family)
    config = json.loads((models.path / "config.json").read_text())
    text = config["text_config"]
    rope = text.pop("rope_parameters")  # as transformers 4 wrote it
    text["rope_theta"] = rope.get("full_attention", rope).pop("rope_theta")
    if "sliding_attention" in rope:
        text["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    if "mrope_section" in rope:
        text["rope_scaling"] = rope
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(models.path / "model.safetensors")
    written = {nested(name): t.astype(jnp.dtype(dtype)) for name, t in tensors.items()}
    save_file(written, tmp_path / "model.safetensors")
    model, params = from_pretrained(tmp_path, dtype="float32")
    assert model == dataclasses.replace(
        models.model, config=dataclasses.replace(models.model.config, raw=model.config.raw)
    )
    expected = jax.tree.map(lambda p: p.astype(dtype).astype("float32"), models.params)
    assert_same(params, expected)


@families
def test_a_head_of_its_own_is_kept_though_config_json_ties_it(family, tmp_path):
    models = pair(family)
    file = json.loads((models.path / "config.json").read_text())
    file["tie_word_embeddings"] = True
    file.get("text_config", {})["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(file))
    tensors = load_file(models.path / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(from_pretrained(tmp_path, dtype="float32")[1], models.params)
    # and one that is the embedding is not held twice
    [head] = [name for name in tensors if name.endswith("lm_head.weight")]
    [embedding] = [name for name in tensors if name.endswith("embed_tokens.weight")]
    save_file(tensors | {head: tensors[embedding]}, tmp_path / "model.safetensors")
    assert "lm_head" not in from_pretrained(tmp_path, dtype="float32")[1]


@with_vision
def test_videos_are_refused(family):
    models, inputs = pair(family), many(family)
    with pytest.raises(NotImplementedError, match="videos"):
        models.model.prepare(**inputs, pixel_values_videos=inputs["pixel_values"])


@with_vision
def test_placeholders_that_do_not_fit_their_images(family):
    models, inputs = pair(family), processed(family, *case(family).prompts)
    at = np.argwhere(inputs["input_ids"] == 100)[0]
    inputs["input_ids"][tuple(at)] = 5
    with pytest.raises(ValueError, match="image tokens"):
        models.model.prepare(**inputs)
