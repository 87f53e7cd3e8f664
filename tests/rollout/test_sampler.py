"""The sampler against a naive loop over full forward passes, and its promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax.models.kv_cache import block_size
from rdbcl_jax.rollout import shards
from rdbcl_jax.rollout.sampler import sample, widths
from rdbcl_jax.rollout.sampling import Sampling, draw, sampling_of
from rdbcl_jax.sharding import make_mesh, put_batch, replicated
from rdbcl_jax.training.logprobs import compiled_logprobs
from tests import engine


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return engine.load(engine.write_random_model(tmp_path_factory.mktemp("model")))


def naive_logits(policy, params, prompts, tokens):
    """Next-token logits after prompt + tokens [P, G, t], by a full pass of the whole."""
    steps = tokens.shape[2]
    padded = jnp.pad(tokens, ((0, 0), (0, 0), (0, 2)))
    mask = jnp.ones(padded.shape, bool)
    hidden = policy.model.response_hidden(params, prompts, padded, mask)[:, :, steps]
    return hidden @ policy.model.lm_head(params)


@pytest.mark.parametrize("max_tokens", [1, engine.T, 70])
def test_greedy_equals_argmax_of_full_passes(loaded, max_tokens):
    policy, params = loaded
    prompts, out = engine.rollout(
        policy, params, samples=1, max_tokens=max_tokens, greedy=True, stop_ids=(), count=4
    )
    assert out.mask.all() and not out.finished.any()
    forbidden = jnp.array(sampling_of(policy, engine.small_config().rollout).forbidden_ids)
    check = range(max_tokens) if max_tokens < 10 else (0, 1, 62, 63, 64, 65, 66, 69)
    for t in check:  # around the boundaries of blocks
        logits = naive_logits(policy, params, prompts, out.tokens[:, :, :t])
        expected = logits.at[..., forbidden].set(-jnp.inf).argmax(-1)
        np.testing.assert_array_equal(out.tokens[:, :, t], expected)


def test_logps_are_the_trainers(loaded):
    policy, params = loaded
    prompts, out = engine.rollout(policy, params, temperature=0.7, max_tokens=40)
    logps = compiled_logprobs(
        policy.model, params, prompts, out.tokens, out.mask, temperature=0.7, chunk_size=64
    )
    assert 0 < out.mask.mean() < 1  # some ended early
    np.testing.assert_allclose(
        np.where(out.mask, logps, 0), np.where(out.mask, out.logps, 0), atol=2e-5
    )


def test_same_key_repeats_and_another_differs(loaded):
    policy, params = loaded
    first, again, other = (engine.rollout(policy, params, key=k)[1] for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.tokens != other.tokens).any()
    # rollouts of one prompt differ from each other too
    assert (first.tokens[:, 0] != first.tokens[:, 1]).any()


def test_stops_at_the_end_token_and_never_draws_a_forbidden_id(loaded):
    policy, params = loaded
    _, out = engine.rollout(policy, params, samples=32, temperature=5.0, max_tokens=40)
    tokens, mask = np.asarray(out.tokens), np.asarray(out.mask)
    forbidden = sampling_of(policy, engine.small_config().rollout).forbidden_ids
    assert policy.model.config.image_token_id in forbidden
    assert policy.tokenizer.pad_token_id in forbidden
    assert not np.isin(tokens[mask], forbidden).any()
    stops = np.isin(tokens, policy.stop_ids) & mask
    lengths = mask.sum(-1)
    ends = np.take_along_axis(stops, lengths[..., None] - 1, -1)[..., 0]
    np.testing.assert_array_equal(ends, out.finished)  # a stop is the last token, and counts
    assert stops.sum() == ends.sum() and out.finished.any()
    assert (np.asarray(out.logps)[~mask] == 0).all()


def test_text_only_batch(loaded):
    policy, params = loaded
    only_text = [engine.records(4)[3]] * 2
    encoder_prompts = policy.encoder.encode(only_text)
    blind = dataclasses.replace(encoder_prompts.model_inputs, images=None)
    without = dataclasses.replace(encoder_prompts, model_inputs=blind)
    sampling = sampling_of(policy, engine.small_config().rollout, greedy=True)
    outs = [
        sample(policy.model, params, p, jax.random.key(0), samples=1, sampling=sampling)
        for p in (encoder_prompts, without)
    ]
    np.testing.assert_array_equal(outs[0].tokens, outs[1].tokens)


@pytest.mark.parametrize("samples", [1, 8])
def test_rollouts_that_go_on_alone_draw_what_they_would_have_drawn(loaded, samples):
    """Long-tailed lengths over a boundary of the cache: every token against one pass of the whole.

    Rollouts end one by one, so all widths occur, with rows in another order than before: 32 read
    their prompts where they lie; as many as there are prompts and twice as many have them beside.
    """
    policy, params = loaded
    vocabulary = policy.model.config.text.vocab_size
    max_tokens, stop_ids = 80, tuple(range(10, vocabulary, 25))
    prompts, out = engine.rollout(
        policy,
        params,
        samples=samples,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        temperature=5.0,
        count=32 // samples,
    )
    lengths = np.asarray(out.mask.sum(-1))
    assert (lengths > 65).any() and (lengths < 10).any()
    sampling = dataclasses.replace(
        sampling_of(policy, engine.small_config().rollout),
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        temperature=5.0,
    )
    hidden = policy.model.response_hidden(params, prompts, out.tokens, out.mask)
    logits = hidden @ policy.model.lm_head(params)
    keys = jax.random.split(jax.random.key(0), max_tokens)
    numbers = jnp.stack([jax.random.uniform(k, (*lengths.shape, 2)) for k in keys], 2)
    tokens, logps = draw(numbers, logits, sampling)
    np.testing.assert_array_equal(np.where(out.mask, tokens, 0), out.tokens)
    np.testing.assert_allclose(np.where(out.mask, logps, 0), out.logps, atol=2e-5)


def test_rows_leave_on_their_own_device(loaded):
    """Over four devices, each with rows of its own to drop: the same tokens, and no row travels."""
    policy, params = loaded
    vocabulary = policy.model.config.text.vocab_size
    options = {"max_tokens": 32, "stop_ids": tuple(range(10, vocabulary, 12)), "temperature": 5.0}
    _, expected = engine.rollout(policy, params, samples=2, **options)
    mesh = make_mesh(data=4, devices=jax.devices()[:4])
    model = dataclasses.replace(policy.model, mesh=mesh)
    rows = policy.encoder.encode(engine.records(8))
    sampling = sampling_of(policy, engine.small_config().rollout)
    program = sample.lower(
        model,
        jax.device_put(params, replicated(mesh)),
        put_batch(rows, mesh),
        jax.device_put(jax.random.key(0), replicated(mesh)),
        samples=2,
        sampling=dataclasses.replace(sampling, **options),
    ).compile()
    whole = jax.device_put(params, replicated(mesh)), put_batch(rows, mesh)
    found = program(*whole, jax.device_put(jax.random.key(0), replicated(mesh)))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    lengths = np.asarray(found.mask.sum(-1)).reshape(4, -1)
    assert lengths.max() > 1 and len({*lengths.max(1).tolist()}) > 1  # they end at other times
    text = program.as_text()
    moves = ("all-gather", "all-to-all", "collective-permute")
    assert not any(f" {move}(" in text for move in moves)


def uniforms(rows):
    return jax.random.uniform(jax.random.key(0), (len(rows), 2))


def test_draw_follows_the_restricted_distribution():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    rows = jnp.broadcast_to(logits, (20000, 4))

    def frequencies(**options):
        token, logp = draw(
            jax.random.uniform(jax.random.key(0), (len(rows), 2)),
            rows,
            Sampling(max_tokens=1, **options),
        )
        np.testing.assert_allclose(logp, logits[token], atol=1e-6)  # of the full softmax
        return np.bincount(token, minlength=4) / len(rows)

    def close(found, expected):
        np.testing.assert_allclose(found, np.array(expected) / np.sum(expected), atol=0.015)

    close(frequencies(), [0.5, 0.25, 0.15, 0.1])
    close(frequencies(top_k=2), [0.5, 0.25, 0, 0])
    close(frequencies(top_p=0.7), [0.5, 0.25, 0, 0])
    close(frequencies(top_p=0.76), [0.5, 0.25, 0.15, 0])
    close(frequencies(forbidden_ids=(0,)), [0, 0.25, 0.15, 0.1])
    close(frequencies(forbidden_ids=(0,), top_k=1), [0, 1, 0, 0])
    close(frequencies(greedy=True), [1, 0, 0, 0])


@pytest.mark.parametrize("vocabulary", [100, 128, 1000])
def test_draw_is_exact_over_many_blocks_of_ids(vocabulary):
    """Chi-square of 50,000 draws; no id of probability 0, a row's token is its own key's."""
    logits = 2 * jax.random.normal(jax.random.key(1), (vocabulary,))
    banned = (*range(0, vocabulary, 7), vocabulary - 1)
    sampling = Sampling(max_tokens=1, forbidden_ids=banned)
    rows = jnp.broadcast_to(logits, (50_000, vocabulary))
    token, _ = draw(uniforms(rows), rows, sampling)
    probs = np.array(jnp.exp(logits), np.float64)
    probs[list(banned)] = 0
    expected = len(token) * probs / probs.sum()
    found = np.bincount(token, minlength=vocabulary)
    assert (found[list(banned)] == 0).all()
    seen = expected > 5
    statistic = ((found - expected)[seen] ** 2 / expected[seen]).sum()
    freedom = seen.sum() - 1
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("tensor", [2, 8])
@pytest.mark.parametrize("options", [{}, {"top_k": 7}, {"greedy": True}], ids=str)
def test_split_vocabularies_draw_the_same(tensor, options):
    """1,000 ids on two and on eight devices: some of the blocks of 128 lie on two of them."""
    keys = jax.random.split(jax.random.key(0), 2)
    logits = 3 * jax.random.normal(keys[0], (8, 64, 1000))
    uniforms = jax.random.uniform(keys[1], (8, 64, 2))
    sampling = Sampling(2, temperature=0.7, forbidden_ids=(0, 3, 997), **options)
    mesh = make_mesh(fsdp=8 // tensor, tensor=tensor)
    expected, logps = draw(uniforms, logits, sampling)
    assert shards.serves(1000, sampling, mesh)
    token, logp = jax.jit(lambda u, x: draw(u, x, sampling, mesh))(uniforms, logits)
    assert len(set(token.ravel().tolist())) > 200 and (token == expected).all()
    np.testing.assert_allclose(logp, logps, atol=1e-5)


def test_one_dominant_forbidden_id_leaves_the_rest_its_distribution():
    logits = jnp.tile(jnp.array([500.0, 0.0, np.log(3.0)]), (20000, 1))
    token, _ = draw(uniforms(logits), logits, Sampling(max_tokens=1, forbidden_ids=(0,)))
    np.testing.assert_allclose(np.bincount(token, minlength=3) / 20000, [0, 0.25, 0.75], atol=0.015)


def test_temperature_scales_draw_and_logp():
    logits = jnp.array([[0.0, 1.0]] * 20000)
    token, logp = draw(uniforms(logits), logits, Sampling(max_tokens=1, temperature=2.0))
    expected = jax.nn.log_softmax(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(logp, expected[token], atol=1e-6)
    np.testing.assert_allclose(token.mean(), np.exp(expected[1]), atol=0.015)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"max_tokens": 0},
        {"top_p": 0.0},
        {"stop_ids": (3,), "forbidden_ids": (3,)},
    ],
)
def test_refuses_impossible_options(options):
    with pytest.raises(ValueError):
        Sampling(**{"max_tokens": 4, **options})


def test_at_most_half_of_the_rows_are_idle_down_to_four():
    assert widths(1, 256) == (1,)
    assert widths(5, 256) == (5, 3, 1)
    assert widths(64, 256) == (64, 32, 16, 8, 4, 1)


def test_every_width_has_sixteen_tokens_to_earn_its_program():
    of_64 = {1: (64,), 31: (64,), 32: (64, 8), 48: (64, 16, 4), 64: (64, 32, 8, 4)}
    assert {tokens: widths(64, tokens) for tokens in of_64} == of_64
    assert widths(64, 96) == widths(64, 4096)
    assert widths(4, 32) == (4, 1) and widths(1, 16) == (1,)


def test_slots_lie_in_few_blocks():
    assert [block_size(slots) for slots in (1, 64, 65, 255, 257, 1023)] == [1, 64, 64, 64, 128, 256]
