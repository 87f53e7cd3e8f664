"""Passes end with the longest response, and nothing else changes by it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax.batches import Rollouts
from rdbcl_jax.sharding import make_mesh, put_batch
from rdbcl_jax.training.fisher import squared_gradients
from rdbcl_jax.training.lengths import Parts, cut_to_longest, lengths
from rdbcl_jax.training.logprobs import compiled_logprobs, response_logprobs
from tests import engine
from tests.engine import method

MOST = 96  # tokens; branches for 96 and 48
LONGEST = np.array([10, 96, 24, 30, 3, 48, 20, 60])  # of each prompt


def mask_of(longest=LONGEST, samples=4):
    """One response of each prompt is so long, the others are shorter."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(1, longest[:, None] + 1, (len(longest), samples))
    drawn[:, 1] = longest
    return np.arange(MOST) < drawn[..., None]


@pytest.fixture(scope="module")
def batch(loaded):
    """Responses of many lengths, of which only one part is long."""
    mask = mask_of()
    prompts, _ = engine.rollout(*loaded)
    rng = np.random.default_rng(1)
    tokens = np.where(mask, rng.integers(10, 40, mask.shape), 0).astype(np.int32)
    logps = jnp.where(mask, -2.0, 0.0)
    rollouts = Rollouts(jnp.asarray(tokens), jnp.asarray(mask), logps, jnp.ones(mask.shape[:2]))
    found = engine.train_batch(prompts, rollouts, reference_logps=logps - 0.5)
    return dataclasses.replace(found, old_logps=logps)


def test_short_responses_have_one_length():
    assert lengths(1) == (1,) and lengths(64) == (64,)
    assert lengths(65) == (65, 33) and lengths(MOST) == (96, 48)
    assert lengths(256) == (256, 128, 64) and lengths(1024) == (1024, 512, 256)


@pytest.mark.parametrize("longest,length", [(0, 64), (64, 64), (65, 128), (129, 256), (256, 256)])
def test_a_pass_goes_to_the_shortest_length_that_holds_all(longest, length):
    mask = np.zeros((2, 3, 256), bool)
    mask[1, 2, :longest] = True

    @jax.jit
    def passed(mask, tree):
        return cut_to_longest(
            lambda m, t: jnp.array([m.shape[-1], t["a"].shape[-1]]), mask, mask, tree
        )

    assert passed(mask, {"a": mask, "b": mask[..., 0]}).tolist() == [length, length]


def test_prompts_of_a_batch_stay_as_they_are(batch):
    prompts = dataclasses.replace(batch.prompts, tokens=jnp.zeros(batch.mask.shape))
    looked = dataclasses.replace(batch, prompts=prompts, mask=batch.mask & (jnp.arange(MOST) < 9))
    shape = cut_to_longest(
        lambda b: jnp.array([b.prompts.tokens.shape[-1], b.tokens.shape[-1]]), looked.mask, looked
    )
    assert shape.tolist() == [MOST, 48]


@pytest.mark.parametrize(
    "shape,order",
    [
        ((1, 1, 2), [4, 0, 6, 2, 3, 5, 7, 1]),
        ((2, 1, 1), [0, 2, 4 + 0, 4 + 2, 3, 1, 4 + 1, 4 + 3]),
    ],
)
def test_each_devices_prompts_come_in_the_order_of_their_lengths(shape, order):
    parts = Parts.of(jnp.asarray(mask_of()), 2, make_mesh(*shape, devices=jax.devices()[:2]))
    rows = {"a": jnp.arange(8), "b": jnp.arange(16).reshape(8, 2), "c": jnp.asarray(7)}
    apart = parts.split(rows)
    assert apart["a"].tolist() == np.reshape(order, (2, 4)).tolist()
    assert apart["b"][..., 0].tolist() == (2 * np.reshape(order, (2, 4))).tolist()
    assert apart["c"].tolist() == [7, 7]
    del apart["c"], rows["c"]
    jax.tree.map(np.testing.assert_array_equal, parts.joined(apart), rows)


def update(policy, params, batch, microbatches):
    return engine.update(policy, params, batch, method("rdbcl"), microbatches=microbatches)


@pytest.fixture(scope="module")
def plain(loaded, batch):
    """The update of whole lengths, all at once."""
    policy, params = loaded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rdbcl_jax.training.lengths.SHORT", MOST)
        return update(policy, params, batch, 1)


def same_update(found, plain, params):
    (state, metrics, samples), (whole, expected, each) = found, plain
    trees = map(jax.tree.leaves, (state.params, whole.params, params))
    for a, b, start in zip(*trees, strict=True):
        change = np.abs(np.asarray(b) - start).max()
        np.testing.assert_allclose(a, b, atol=2e-5 * change + 1e-8)
    for name in ("loss", "kl", "entropy", "grad_norm", "rp/mean", "sampler/logp_difference/max"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4, atol=1e-7)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, samples, each)  # each sample's, in the order of the batch


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [pytest.param(1, marks=pytest.mark.long), 4])
def test_an_update_is_that_of_whole_lengths(loaded, batch, plain, microbatches):
    policy, params = loaded
    found = update(policy, params, batch, microbatches)
    same_update(found, plain, params)


def test_what_lies_behind_the_longest_response_is_not_read(loaded, batch):
    """As NaN it would be seen, were it multiplied by a mask."""
    policy, params = loaded
    short = batch.mask & (jnp.arange(MOST) < 40)
    behind = jnp.where(jnp.arange(MOST) < 48, batch.reference_logps, jnp.nan)
    looked = dataclasses.replace(batch, mask=short, reference_logps=behind)
    _, metrics, _ = update(policy, params, looked, 1)
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])


@pytest.mark.parametrize("parts", [1, 4])
def test_logprobs_are_those_of_whole_lengths_and_0_behind(loaded, batch, parts):
    policy, params = loaded
    short = batch.mask & (jnp.arange(MOST) < 40)
    args = (policy.model, params, batch.prompts, batch.tokens, short)
    options = {"temperature": 1.0, "chunk_size": 64, "return_entropy": True}
    for found, whole in zip(
        compiled_logprobs(*args, **options, parts=parts),
        response_logprobs(*args, **options),
        strict=True,
    ):
        assert found.shape == whole.shape and (np.asarray(found)[..., 48:] == 0).all()
        np.testing.assert_allclose(found[..., :48], whole[..., :48], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_devices_keep_their_own_prompts(directory, loaded, batch, plain):
    """Over four devices, in parts of one prompt each: as on one."""
    mesh = make_mesh(2, 2, 1, devices=jax.devices()[:4])
    split, own = engine.load(directory, mesh)
    host = put_batch(jax.tree.map(np.asarray, batch), mesh)
    same_update(update(split, own, host, 2), plain, loaded[1])


@pytest.mark.slow
def test_the_fisher_information_is_that_of_whole_lengths(loaded, batch, monkeypatch):
    policy, params = loaded
    rows = Rollouts(batch.tokens, batch.mask, batch.sampler_logps, batch.demonstrated)
    first = jax.tree.map(lambda a: a[:, :1], rows)

    def squared():
        options = {"temperature": 1.0, "chunk_size": 64}
        counted = np.ones(len(first.mask), bool)
        given = (policy.model, params, policy.frozen, batch.prompts, first, counted)
        return jax.tree.leaves(squared_gradients.__wrapped__(*given, **options))

    found = squared()
    monkeypatch.setattr("rdbcl_jax.training.lengths.SHORT", MOST)
    for a, b in zip(found, squared(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max() + 1e-12)
