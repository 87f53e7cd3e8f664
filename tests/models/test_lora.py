"""Adapters and the split of parameters into trained and frozen ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from oracle import FAMILIES, pair, processed, torch_logits, worst

from rdbcl_jax.config import RunConfig
from rdbcl_jax.json_files import plain
from rdbcl_jax.models import from_pretrained, lora, partition, save_pretrained
from rdbcl_jax.models.lora import LoRA
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.workdir import changes

ROWS = processed(([3, (6, 10), 4], "left"), ([5], "left"))
EVERYWHERE = LoRA(rank=3, alpha=5.0, targets=r"_proj$|/qkv$|/proj$|fc[12]$")
families = pytest.mark.parametrize("family", FAMILIES)


def adapted(family, options=EVERYWHERE):
    """A model whose adapters are random, so that they matter."""
    models = pair(family)
    model, params = lora.add(models.model, models.params, options, jax.random.key(0))
    adapters, base = partition.split(params, partition.ADAPTERS)
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype), adapters
    )
    return model, adapters, base


@families
def test_fresh_adapters_change_nothing_and_share_the_base(family):
    models = pair(family)
    model, params = lora.add(models.model, models.params, EVERYWHERE, jax.random.key(0))
    plain = models.model.logits(models.params, **ROWS)
    assert worst(model.logits(params, **ROWS), plain) <= 2e-6  # another program rounds elsewhere
    adapters, base = partition.split(params, partition.ADAPTERS)
    ours = {id(leaf) for leaf in jax.tree.leaves(models.params)}
    assert {id(leaf) for leaf in jax.tree.leaves(base)} == ours
    assert {id(leaf) for leaf in jax.tree.leaves(partition.join(adapters, base))} > ours


@families
def test_merged_weights_give_the_same_logits_here_and_in_transformers(family, tmp_path):
    model, adapters, base = adapted(family)
    params = partition.join(adapters, base)
    found = model.logits(params, **ROWS)
    plain = pair(family).model.logits(pair(family).params, **ROWS)
    assert worst(found, plain, ROWS["attention_mask"]) > 0.05
    merged_model, merged = lora.merge(model, params)
    assert merged_model == pair(family).model
    assert jax.tree.structure(merged) == jax.tree.structure(pair(family).params)
    assert worst(merged_model.logits(merged, **ROWS), found, ROWS["attention_mask"]) <= 1e-5
    save_pretrained(tmp_path, model, params)
    theirs = FAMILIES[family][1].from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = torch_logits(theirs, ROWS).numpy()
    assert worst(found, expected, ROWS["attention_mask"]) <= 1e-4


def test_gradients_of_adapters_are_those_of_the_merged_matrices():
    model, adapters, base = adapted("qwen2_5_vl", LoRA(2, 6.0, targets=r"layers/.*q_proj"))
    prompts = model.prepare(**ROWS)

    def loss(adapters, base):
        hidden, _ = model.prefill(partition.join(adapters, base), prompts)
        return jnp.sum(hidden * jnp.cos(jnp.arange(hidden.size)).reshape(hidden.shape))

    def merged_loss(adapters, base):
        merged_model, merged = lora.merge(model, partition.join(adapters, base))
        hidden, _ = merged_model.prefill(merged, prompts)
        return jnp.sum(hidden * jnp.cos(jnp.arange(hidden.size)).reshape(hidden.shape))

    found = jax.jit(jax.grad(loss))(adapters, base)
    expected = jax.jit(jax.grad(merged_loss))(adapters, base)
    assert len(jax.tree.leaves(found)) == 2
    assert max(jax.tree.leaves(jax.tree.map(worst, found, expected))) <= 1e-4


def test_targets_choose_the_matrices():
    models = pair("qwen3_vl")
    options = LoRA(rank=2, targets=r"language_model/layers/self_attn/(q|v)_proj")
    _, params = lora.add(models.model, models.params, options, jax.random.key(0))
    adapters, _ = partition.split(params, partition.ADAPTERS)
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(adapters)}
    assert names == {
        f"['language_model']['layers']['self_attn']['{m}_proj']['lora_{ab}']"
        for m in "qv"
        for ab in "ab"
    }
    attention = adapters["language_model"]["layers"]["self_attn"]
    assert attention["v_proj"]["lora_a"].shape == (3, 32, 2)
    assert attention["v_proj"]["lora_b"].shape == (3, 2, 24)


def test_a_run_saved_with_the_default_targets_written_out_is_the_same_run():
    saved, config = plain(RunConfig()), RunConfig()
    assert saved["model"]["lora"]["targets"] == ""
    saved["model"]["lora"]["targets"] = r"^language_model/layers/.*_proj$"
    assert changes(saved, config) == {}
    assert changes(plain(config), RunConfig.of_saved(saved)) == {}
    saved["model"]["lora"]["targets"] = "q_proj"
    assert changes(saved, config) == {"model.lora.targets": ("q_proj", "")}


def test_targets_that_match_nothing_are_an_error():
    models = pair("qwen2_vl")
    with pytest.raises(ValueError, match="no matrix's name matches"):
        lora.add(models.model, models.params, LoRA(targets="no_such"), jax.random.key(0))


def test_adapters_on_a_mesh():
    models = pair("qwen2_5_vl")
    model, params = from_pretrained(models.path, dtype="float32", mesh=make_mesh(2, 2, 2))
    model, params = lora.add(model, params, EVERYWHERE, jax.random.key(0))
    expected = models.model.logits(models.params, **ROWS)
    assert worst(model.logits(params, **ROWS), expected, ROWS["attention_mask"]) <= 1e-5


# ------------------------------------------------------------------------------ freezing


@families
def test_a_frozen_vision_tower_has_no_gradient_and_no_backward_pass(family):
    models = pair(family)
    model, prompts = models.model, models.model.prepare(**ROWS)
    trained, frozen = partition.split(models.params, model.language_pattern)
    assert not jax.tree.leaves(trained["visual"])
    assert not jax.tree.leaves(frozen["language_model"])

    def loss(trained, frozen):
        return model.prefill(partition.join(trained, frozen), prompts)[0].sum()

    def flops(argnums):
        gradient = jax.jit(jax.grad(loss, argnums))
        return gradient.lower(trained, frozen).cost_analysis()["flops"]

    forward = jax.jit(model.visual_tokens).lower(models.params, prompts.model_inputs.images)
    # the whole gradient costs the vision tower's backward pass more: about twice its forward pass
    assert flops((0, 1)) - flops(0) > 1.5 * forward.cost_analysis()["flops"]
    grads = jax.jit(jax.grad(loss))(trained, frozen)
    assert jax.tree.structure(grads) == jax.tree.structure(trained)


def test_splitting_by_a_name_that_nothing_has_is_an_error():
    with pytest.raises(ValueError, match="nothing would be trained"):
        partition.split(pair("qwen2_vl").params, "no_such")


# ------------------------------------------------------------------------------ recomputation


@families
def test_recomputing_layers_changes_no_gradient(family):
    models = pair(family)
    prompts = models.model.prepare(**ROWS)

    def gradient(remat):
        model = dataclasses.replace(models.model, remat=remat)
        return jax.jit(jax.grad(lambda params: model.prefill(params, prompts)[0].sum()))

    expected = gradient("none")(models.params)
    for remat in ("full", "dots"):
        found = gradient(remat)(models.params)
        assert max(jax.tree.leaves(jax.tree.map(worst, found, expected))) <= 1e-4
