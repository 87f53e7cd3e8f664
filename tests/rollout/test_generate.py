"""Responses to a list of records: every record once, in order, from a beginning on where asked."""

import dataclasses

import jax
import numpy as np
import pytest

from rdbcl_jax.rollout.generate import generate, generate_texts
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.sharding import put_batch
from rdbcl_jax.training.logprobs import compiled_logprobs
from tests import engine

RNG = jax.random.key(3)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    policy, params = engine.load(engine.write_random_model(tmp_path_factory.mktemp("model")))
    return policy, policy.whole(params)


def options(policy, *, greedy=False):
    return dataclasses.replace(
        sampling_of(policy, engine.small_config().rollout, greedy=greedy), max_tokens=engine.T
    )


def test_every_record_once_and_in_order(loaded):
    policy, params = loaded
    batches = list(
        generate(policy, params, engine.records(6), options(policy), RNG, batch_size=4, samples=2)
    )
    assert [b.record_ids[b.valid].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5]]
    assert [b.valid.tolist() for b in batches] == [[True] * 4, [True, True, False, False]]
    assert all(b.host_rollouts().tokens.shape == (4, 2, engine.T) for b in batches)


def test_each_batch_is_the_samplers_with_a_key_of_its_own(loaded):
    policy, params = loaded
    records, sampling = engine.records(8), options(policy)
    _, second = generate(policy, params, records, sampling, RNG, batch_size=4, samples=2)
    prompts = put_batch(policy.encoder.encode(records[4:], range(4, 8)), policy.mesh)
    own = jax.random.fold_in(RNG, 1)
    expected = sample(policy.model, params, prompts, own, samples=2, sampling=sampling)
    jax.tree.map(np.testing.assert_array_equal, second.rollouts, expected)
    logps = compiled_logprobs(
        policy.model,
        params,
        second.prompts,
        second.rollouts.tokens,
        second.rollouts.mask,
        temperature=sampling.temperature,
        chunk_size=64,
    )
    mask = second.rollouts.mask
    np.testing.assert_allclose(np.where(mask, logps, 0), second.rollouts.logps, atol=1e-4)


def test_a_greedy_response_goes_on_from_its_own_beginning(loaded):
    """Cut at a word, it ends as it would have; an empty prefix changes nothing."""
    policy, params = loaded
    records, sampling = engine.records(4), options(policy, greedy=True)

    def texts(prefixes):
        return generate_texts(
            policy, params, records, sampling, RNG, batch_size=2, prefixes=prefixes
        )

    whole = texts([""] * 4)
    prefixes = [" ".join(text.split()[:3]) for text in whole]
    for text, prefix, again in zip(whole, prefixes, texts(prefixes), strict=True):
        assert again.startswith(prefix) and len(again.split()) >= len(text.split())
        assert again.split()[: len(text.split())] == text.split()


def test_prefixes_get_room_beside_the_longest_prompt(loaded):
    policy, params = loaded
    prefixes = ["3 " * policy.encoder.lengths[0]] * 4  # alone as long as a prompt may be
    sampling = dataclasses.replace(options(policy), max_tokens=policy.encoder.lengths[0])
    (text, *_) = generate_texts(
        policy, params, engine.records(4), sampling, RNG, batch_size=4, prefixes=prefixes
    )
    assert text.startswith(prefixes[0])
