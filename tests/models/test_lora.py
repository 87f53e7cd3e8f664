"""Adapters and the split of parameters into trained and frozen ones."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax.config import RunConfig
from rdbcl_jax.json_files import plain
from rdbcl_jax.models import from_pretrained, lora, partition
from rdbcl_jax.models.lora import LoRA
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.workdir import changes
from tests.models.contract import pair, processed
from tests.models.oracle import worst

ROWS = processed("qwen2_5_vl", ([3, (6, 10), 4], "left"), ([5], "left"))


def live():
    return sum(a.nbytes for a in jax.live_arrays())


EVERYWHERE = LoRA(rank=3, alpha=5.0, targets=r"_proj$|/qkv$|/proj$|fc[12]$")


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


def test_fresh_adapters_change_nothing_and_share_the_base():
    models = pair("qwen2_5_vl")
    model, params = lora.add(models.model, models.params, EVERYWHERE, jax.random.key(0))
    plain = models.model.logits(models.params, **ROWS)
    assert worst(model.logits(params, **ROWS), plain) <= 2e-6  # another program rounds elsewhere
    adapters, base = partition.split(params, partition.ADAPTERS)
    ours = {id(leaf) for leaf in jax.tree.leaves(models.params)}
    assert {id(leaf) for leaf in jax.tree.leaves(base)} == ours
    assert {id(leaf) for leaf in jax.tree.leaves(partition.join(adapters, base))} > ours


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


def test_parameters_go_when_their_successors_are_there(monkeypatch):
    models = pair("qwen2_5_vl")
    model = lora.adapt_model(models.model, EVERYWHERE)
    sizes, most, inner = [p.nbytes for p in jax.tree.leaves(models.params)], [], lora._added
    expected = lora.merge(*lora.add(models.model, models.params, EVERYWHERE, jax.random.key(0)))[1]
    gc.collect()
    before = live()

    def watched(*args):
        added = inner(*args)
        most.append(live() - before)
        return added

    monkeypatch.setattr(lora, "_added", watched)
    _, params = lora.add(models.model, models.params, EVERYWHERE, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.copy(a).astype(jnp.bfloat16), params)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float16), models.params)
    _, merged = lora.merge(model, params, like, owned=True)
    assert {a.dtype for a in jax.tree.leaves(merged)} == {jnp.dtype(jnp.float16)}
    assert max(jax.tree.leaves(jax.tree.map(worst, merged, expected))) <= 1e-2
    assert not jax.tree.leaves(params)
    # all of them in 16 bits, adapters, and one matrix of both
    assert len(most) > 5 and max(most) < 0.5 * sum(sizes) * 1.1 + max(sizes)


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


def test_splitting_by_a_name_that_nothing_has_is_an_error():
    with pytest.raises(ValueError, match="nothing would be trained"):
        partition.split(pair("qwen2_vl").params, "no_such")
