"""What a run is said to hold, against what it holds."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import pytest

from rdbcl_jax.batches import Rollouts
from rdbcl_jax.config import RunConfig
from rdbcl_jax.methods import make_method
from rdbcl_jax.models import from_config
from rdbcl_jax.planning import published
from rdbcl_jax.policy import load_policy
from rdbcl_jax.rewards.scoring import RewardConfig
from rdbcl_jax.sharding import numbers_in, put_batch
from rdbcl_jax.toy import digits_suite
from rdbcl_jax.training.footprint import ONE_DEVICE, READ, Sizes, footprint
from rdbcl_jax.training.learner import make_learner
from rdbcl_jax.training.stage import Stage
from tests import engine


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return engine.write_random_model(tmp_path_factory.mktemp("model"))


def config_of(path, rank=0):
    config = engine.small_config()
    config.model.path, config.model.lora.rank = str(path), rank
    return config


def live_bytes():
    """A buffer that two arrays share counts once."""
    gc.collect()
    parts = [part.data for array in jax.live_arrays() for part in array.addressable_shards]
    return sum({part.unsafe_buffer_pointer(): part.nbytes for part in parts}.values())


@pytest.mark.parametrize("rank", [0, 2])
def test_what_stays_is_what_a_learner_holds(path, rank):
    config = config_of(path, rank)
    before = live_bytes()
    policy, base = load_policy(config, engine.one_device())
    method, rewards = make_method(config), RewardConfig(**config.rewards.to_dict())
    learner = make_learner(config, policy, base, method, rewards)
    records = digits_suite.make_records("sum", "train", 8, seed=0)
    state = learner.start(Stage(records, base, base), jax.tree.map(jnp.copy, base))
    found = live_bytes() - before
    expected = footprint(RunConfig.of(config))
    said = sum(expected.held.values()) - expected.held["a batch"]
    assert said == pytest.approx(found, rel=0.01)
    assert expected.trained == sum(a.size for a in jax.tree.leaves(state.train.params))
    assert expected.parameters == sum(a.size for a in jax.tree.leaves(policy.whole(base)))


def test_what_an_update_needs_is_what_it_is_said_to(path):
    """Not to the byte: the compiler shares buffers and makes others."""
    config = config_of(path)
    config.data.prompt_lengths, config.rollout.max_tokens = (256,), 128

    def kept(**changes):
        config.update_from_flattened_dict(changes)
        return footprint(RunConfig.of(config)).update["kept for the backward pass"]

    whole = kept()
    assert kept(**{"training.prompts_per_device": 4}) == pytest.approx(whole / 2, rel=0.05)
    assert kept(**{"model.remat": "full"}) < whole / 4


def test_an_update_needs_about_what_its_compiled_program_says(path):
    config = config_of(path)
    config.model.remat = "full"
    config.data.prompt_lengths, config.rollout.max_tokens = (256,), 128
    policy, base = load_policy(config, engine.one_device())
    rewards = RewardConfig(**config.rewards.to_dict())
    learner = make_learner(config, policy, base, make_method(config), rewards)
    tokens = jnp.zeros((8, 4, 128), jnp.int32)
    logps = jnp.zeros(tokens.shape)
    rollouts = Rollouts(tokens, tokens == 0, logps, tokens[..., 0] == 0)
    prompts = put_batch(policy.encoder.encode(engine.records(8)), policy.mesh)
    state = learner.init(jax.tree.map(jnp.copy, base))
    program = learner.update.lower(state, policy.frozen, engine.train_batch(prompts, rollouts))
    stats = program.compile().memory_analysis()
    said = footprint(RunConfig.of(config))
    estimate = sum(said.update.values()) + said.scores  # no kernel here
    # tests compile without optimisation, which would share more buffers
    assert 0.5 < estimate / stats.temp_size_in_bytes < 2


def test_an_update_holds_its_parameters_in_the_dtype_that_it_reads(path):
    config = config_of(path)
    for dtype, each in (("float32", 0), ("bfloat16", 2)):
        config.model.dtype = dtype
        found = footprint(RunConfig.of(config))
        assert 0.9 * each * found.trained <= found.update[READ] <= each * found.trained


def test_adapters_need_less_and_a_kernel_too(path):
    full, adapters = (footprint(RunConfig.of(config_of(path, rank))) for rank in (0, 2))
    assert adapters.trained < full.trained < adapters.parameters
    for kernel in (True, False):
        assert adapters.most(kernel) < full.most(kernel)
    assert full.most(kernel=True) < full.most(kernel=False)
    unserved = dataclasses.replace(full, kernels=False)
    assert unserved.most(kernel=True) == full.most(kernel=False)


def test_sizes_that_are_left_open_are_named(path):
    config = config_of(path)
    config.data.patch_slots = ()
    with pytest.raises(ValueError, match=r"config\.data\.patch_slots is empty"):
        footprint(RunConfig.of(config))


def test_published_sizes(tmp_path):
    """The readme's table is of models that have as many parameters as those published."""
    for name, parameters in (("SmolVLM-256M", 256_484_928), ("SmolVLM-500M", 507_482_304)):
        model = from_config(published.write(name, tmp_path / name))
        assert sum(a.size for a in jax.tree.leaves(model.abstract_params())) == parameters


def test_a_token_reads_no_vision_tower_and_of_an_embedding_a_row(path):
    config = RunConfig.of(config_of(path))
    sizes = Sizes.of(config)
    text = numbers_in(sizes.whole["language_model"])
    each = jnp.dtype(config.model.dtype).itemsize
    assert sizes.read_with_each_token(ONE_DEVICE) == each * text < each * numbers_in(sizes.whole)
    table = sizes.whole["language_model"]["embed_tokens"]["embedding"]
    head = {"lm_head": {"kernel": jax.ShapeDtypeStruct(table.shape[::-1], sizes.dtype)}}
    untied = dataclasses.replace(sizes, decoder=sizes.decoder | head)
    # compiled for v5e:4x4, 3B copies bf16[151936,2048] to [2048,151936] before it decodes
    anew = [s.sampling(ONE_DEVICE, 8, 4).get("the head, laid out anew") for s in (sizes, untied)]
    assert anew == [each * table.size, None]
    assert untied.read_with_each_token(ONE_DEVICE) == each * text  # the head in its place
