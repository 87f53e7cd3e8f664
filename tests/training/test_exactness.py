"""Score and update on shared prompts against one plain pass over copies of prompt + response.

The plain form is written out here: whole rows, the full softmax, GRPO's formula, JAX's gradient.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rdbcl_jax.batches import Rollouts
from rdbcl_jax.core.advantages import group_advantages
from rdbcl_jax.models import lora, partition
from rdbcl_jax.training.logprobs import compiled_logprobs
from rdbcl_jax.training.state import TrainState
from rdbcl_jax.training.update import UpdateConfig, make_update
from tests import engine
from tests.models.contract import pair, processed
from tests.models.oracle import worst
from tests.training.test_update import method

G, T, BETA = 2, 5, 0.3
ROWS = {
    "pictures": (([3, (6, 10), 4, (4, 4), 5], "left"), ([7], "left"), ([2, (8, 8), 6], "left")),
    "text": (([9], "left"), ([5], "left"), ([12], "left")),
}
RNG = np.random.default_rng(3)
TOKENS = RNG.integers(0, 90, (3, G, T)).astype(np.int32)
MASK = np.arange(T) < np.array([[5, 2], [1, 4], [3, 5]])[..., None]
REWARDS = RNG.normal(size=(3, G)).astype(np.float32)
REFERENCE = RNG.uniform(-6, -3, TOKENS.shape).astype(np.float32)


def plain_logps(model, params, rows):
    """[3, G, T] from G passes over whole rows."""
    out = []
    for g in range(G):
        whole = {
            "input_ids": np.concatenate([rows["input_ids"], TOKENS[:, g]], 1),
            "attention_mask": np.concatenate([rows["attention_mask"], MASK[:, g]], 1),
        }
        hidden = model.prefill(params, model.prepare(**{**rows, **whole}))[0][:, -T - 1 : -1]
        logps = jax.nn.log_softmax(hidden @ model.lm_head(params))
        out.append(jnp.take_along_axis(logps, TOKENS[:, g, :, None], -1)[..., 0])
    return jnp.stack(out, 1)


def plain_loss(logps, advantages):
    gap = REFERENCE - logps
    ratio = jnp.exp(logps - jax.lax.stop_gradient(logps))
    per_token = -ratio * advantages[..., None] + BETA * (jnp.exp(gap) - gap - 1)
    return (jnp.where(MASK, per_token, 0).sum(-1) / MASK.sum(-1)).mean()


def models(family, with_lora):
    """(model, trained parameters, frozen ones)."""
    model, params = pair(family).model, pair(family).params
    if not with_lora:
        return model, params, jax.tree.map(lambda _: None, params)
    options = lora.LoRA(rank=3, alpha=5.0, targets=r"_proj$|/qkv$|/proj$|fc[12]$")
    model, params = lora.add(model, params, options, jax.random.key(0))
    adapters, base = partition.split(params, partition.ADAPTERS)
    rng = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype)  # noqa: E731
    return model, jax.tree.map(draw, adapters), base


def batch(prompts, old_logps):
    tokens, mask = jnp.asarray(TOKENS), jnp.asarray(MASK)
    finished = jnp.ones(mask.shape[:2], bool)
    rollouts = Rollouts(tokens, mask, jnp.zeros(mask.shape), finished)
    return engine.train_batch(
        prompts,
        rollouts,
        rewards=jnp.asarray(REWARDS),
        reference_logps=jnp.asarray(REFERENCE),
        old_logps=old_logps,
    )


@pytest.mark.parametrize(
    "family,rows,with_lora,remat,microbatches",
    [
        ("qwen2_vl", "pictures", False, "none", 1),
        ("qwen2_5_vl", "pictures", True, "full", 3),
        ("qwen3_vl", "pictures", False, "full", 3),
        ("qwen3_vl", "text", False, "dots", 3),
    ],
)
def test_loss_and_every_gradient_are_the_plain_forms(family, rows, with_lora, remat, microbatches):
    model, trained, frozen = models(family, with_lora)
    rows = processed(family, *ROWS[rows])
    prompts = jax.tree.map(jnp.asarray, model.prepare(**rows))
    advantages = group_advantages(jnp.asarray(REWARDS))

    @jax.jit
    def plain(trained):
        logps = plain_logps(model, partition.join(trained, frozen), rows)
        return plain_loss(logps, advantages), logps

    (loss, logps), grads = jax.value_and_grad(plain, has_aux=True)(trained)
    model = dataclasses.replace(model, remat=remat)
    options = {"temperature": 1.0, "chunk_size": 7}
    whole = partition.join(trained, frozen)
    old = compiled_logprobs(
        model, whole, prompts, jnp.asarray(TOKENS), jnp.asarray(MASK), **options
    )
    assert worst(old, logps, MASK) <= 1e-5

    rate = 1e4  # gradients are read from the step that they make: it must not drown in rounding
    optimizer = optax.sgd(rate)
    config = UpdateConfig(**options, microbatches=microbatches)
    update = make_update(model, optimizer, method("grpo", **{"kl.beta": BETA}), config)
    state = TrainState.create(jax.tree.map(jnp.copy, trained), optimizer)
    state, metrics, _ = update(state, frozen, batch(prompts, old if microbatches > 1 else None))
    assert abs(metrics["loss"] - loss) <= 1e-4 * abs(loss)
    found = jax.tree.map(lambda a, b: (a - b) / rate, trained, state.params)
    for (path, expected), leaf in zip(
        jax.tree.leaves_with_path(grads), jax.tree.leaves(found), strict=True
    ):
        if jnp.abs(expected).max() > 0 or jnp.abs(leaf).max() > 0:
            assert worst(leaf, expected) <= 1e-4, jax.tree_util.keystr(path)
