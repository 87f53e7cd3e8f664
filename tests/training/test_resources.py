"""What a run must not do twice: hold the base weights, compile for a shape."""

import dataclasses
import gc

import jax
import numpy as np
import pytest
from PIL import Image

from rdbcl_jax.data import suite
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.tiny import write_tiny_model
from rdbcl_jax.methods import make_method
from rdbcl_jax.models import save_pretrained
from rdbcl_jax.models.qwen_vl.config import read_config
from rdbcl_jax.models.qwen_vl.model import QwenVL
from rdbcl_jax.policy import load_policy
from rdbcl_jax.rewards.scoring import RewardConfig
from rdbcl_jax.sharding import make_mesh, put_batch
from rdbcl_jax.training.learner import Learner, Stage
from tests import engine

pytestmark = pytest.mark.slow

WIDE = dataclasses.replace(engine.SIZE, width=128, mlp_width=512)  # much more than a batch


def live_bytes():
    """Of all arrays on all devices; a buffer that two arrays share counts once."""
    gc.collect()
    parts = [part.data for array in jax.live_arrays() for part in array.addressable_shards]
    return sum({part.unsafe_buffer_pointer(): part.nbytes for part in parts}.values())


def nbytes(params):
    return sum(a.nbytes for a in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("wide"), WIDE)
    model = QwenVL(read_config(path))
    save_pretrained(path, model, model.init(jax.random.key(1)), like=path)
    return path


def most_bytes_while_learning(path, rank):
    """(bytes held by a learner that has a reference, in units of the model's; the model's)."""
    config = engine.small_config()
    config.model.path, config.model.lora.rank = str(path), rank
    config.training.steps = 2
    before = live_bytes()
    policy, base = load_policy(config, engine.one_device())
    method, rewards = make_method(config), RewardConfig(**config.rewards.to_dict())
    learner = Learner(config, policy, base, method, rewards)
    held = []

    def report(index, metrics, samples):
        assert index == 0 or metrics["kl"] > 0  # the reference is another policy
        held.append(live_bytes() - before)

    stage = Stage(suite.make_records("sum", "train", 16, seed=0), base, base)
    learner.learn(
        stage,
        learner.init(base),
        learner.progress(stage),
        start=0,
        first_step=0,
        report=report,
        save=lambda done, state, progress: None,
    )
    assert len(held) == 2
    return max(held) / nbytes(policy.whole(base))


def test_lora_holds_the_base_weights_once(wide_model):
    # policy, reference and optimizer have adapters of their own, and batches are small
    assert 1 <= most_bytes_while_learning(wide_model, rank=1) < 1.5


def test_full_fine_tuning_holds_the_weights_four_times(wide_model):
    # so the measure sees copies: policy, reference, and the optimizer's two moments
    assert 4 <= most_bytes_while_learning(wide_model, rank=0) < 4.5


@pytest.mark.parametrize("devices", [1, 8])
def test_pictures_of_any_size_compile_once_per_shape_of_the_config(tmp_path, devices):
    config = engine.small_config()
    config.model.path = str(engine.write_random_model(tmp_path))
    config.data.prompt_lengths, config.data.patch_slots = (24, 80), (64, 256)
    policy, params = load_policy(config, make_mesh(devices=jax.devices()[:devices]))
    prefill = jax.jit(policy.model.prefill)
    rng = np.random.default_rng(0)
    grids, shapes = set(), set()
    for limit in (19, 19, 90, 40, 90, 19, 40, 90):
        sizes = rng.integers(5, limit, (8, 2))
        batch = policy.encoder.encode(
            [
                Record(
                    str(i),
                    "sum",
                    "sum 3",
                    (Image.new("RGB", tuple(size.tolist())),),
                    "1",
                    "exact",
                    {},
                )
                for i, size in enumerate(sizes)
            ]
        )
        grids |= {tuple(grid) for grid in batch.images.grid[:, 0].tolist()}
        shapes |= {(batch.tokens.shape, batch.images.patches.shape)}
        hidden, _ = prefill(policy.whole(params), put_batch(batch, policy.mesh))
        assert np.isfinite(hidden).all()
    assert len(grids) > 20 and 1 < len(shapes) <= 4
    assert prefill._cache_size() == len(shapes)
