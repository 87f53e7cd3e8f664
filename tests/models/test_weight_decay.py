"""Weights decay in matrices; norms, biases and embeddings of every family are left alone."""

import re

import jax
import jax.numpy as jnp
import pytest

from rdbcl_jax.config import OptimizerConfig
from rdbcl_jax.models import from_config, lora
from rdbcl_jax.training.optimizer import decaying, make_optimizer
from tests.models.contract import FAMILIES, case

# what is no matrix that a product is taken with: norms and their like, biases, embeddings
LEFT_ALONE = re.compile(
    r"norm|ln_q|/lambda_|bias$|/embedding$|position_embedding|pos_embed|cls_token|image_newline"
)


def places(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_decays_of_every_family(tmp_path, family):
    case(family).config(False).save_pretrained(tmp_path)
    model = from_config(tmp_path)
    for adapted in (model, lora.adapt_model(model, lora.LoRA(rank=2))):
        found = places(decaying(adapted.abstract_params()))
        wrong = {name: d for name, d in found.items() if d == bool(LEFT_ALONE.search(name))}
        assert not wrong
        assert any(found.values()) and not all(found.values())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_optimizers_decay_that_alone(name):
    """By what they make of parameters without a gradient."""
    shapes = {"proj": {"kernel": (4, 4), "bias": (4,)}, "norm": {"scale": (4,)}}
    shapes["proj"] |= {"lora_a": (4, 2), "lora_b": (2, 4)}
    shapes |= {"embed_tokens": {"embedding": (5, 4)}, "positions": {"embedding": (6, 4)}}
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda s: isinstance(s, tuple))
    options = OptimizerConfig(name=name, learning_rate=0.5, warmup_steps=0, weight_decay=0.1)
    optimizer = make_optimizer(options, 10)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    moved = {place for place, update in places(updates).items() if update.any()}
    adapters = {"proj/lora_a", "proj/lora_b"}  # Muon leaves them to an Adam that takes no mask
    assert moved == {"proj/kernel"} | (adapters if name == "adamw" else set())
    assert jnp.allclose(updates["proj"]["kernel"], -0.05)
