"""A very small policy with real files, and batches for it: what the engine's tests share."""

import dataclasses
import functools
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.config import default_config
from rdbcl_jax.data.records import Record
from rdbcl_jax.methods import make_method
from rdbcl_jax.models import from_config, save_pretrained
from rdbcl_jax.policy import load_policy
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.sharding import make_mesh, put_batch
from rdbcl_jax.toy import digits_suite
from rdbcl_jax.toy.tiny import TinySize, write_tiny_model
from rdbcl_jax.training.state import TrainState
from rdbcl_jax.training.update import UpdateConfig, make_update

SIZE = TinySize(
    depth=2,
    width=32,
    mlp_width=48,
    heads=4,
    kv_heads=2,
    vision_depth=2,
    vision_width=16,
    vision_mlp_width=24,
)
T = 8


def small_config():
    config = default_config()
    config.sequence = ("sum", "jigsaw")
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.base.size = {k: v for k, v in dataclasses.asdict(SIZE).items()}
    config.base.steps, config.base.batch_size = 30, 32
    config.data.prompt_lengths, config.data.patch_slots = (20,), (32,)
    config.data.train_count, config.data.validation_count, config.data.test_count = 64, 8, 16
    # so small a base is never right: a reward that varies all the same, or nothing would be learned
    config.rewards.functions = {"brief": "tests.engine:brief"}
    config.rewards.weights = {"format": 0.2, "accuracy": 1.0, "brief": 1.0}
    config.rollout.prompts, config.rollout.samples, config.rollout.max_tokens = 8, 4, 16
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 1
    config.training.steps = 4
    config.training.checkpoint_every = 0
    config.evaluation.batch_size = 16
    return config


def brief(prompts, completions, **columns):
    """A reward function in TRL's form."""
    return [-0.1 * len(text.split()) for text in completions]


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def write_random_model(path):
    """A checkpoint directory of random weights, spread enough that no distribution is flat."""
    return shutil.copytree(_random_model().name, path, dirs_exist_ok=True)


@functools.cache
def _random_model():
    """Made once a process, in a folder that goes with it: files take copies."""
    folder = tempfile.TemporaryDirectory(prefix="rdbcl-tests-")
    path = pathlib.Path(folder.name)
    write_tiny_model(path, SIZE)
    model = from_config(path)
    params = model.init(jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), params)
    save_pretrained(path, model, params, like=path)
    return folder


def load(path, mesh=None):
    config = small_config()
    config.model.path = str(path)
    return load_policy(config, mesh or one_device())


def records(count=8):
    """Image prompts of two lengths, and a text-only one in every four."""
    made = [
        digits_suite.make_record(task, "train", i, 0)
        for i, task in zip(range(count), ("sum", "jigsaw", "walk", "alt") * count, strict=False)
    ]
    text_only = Record("t", "sum", "sum 3", (), "1", "exact", {})
    return [text_only if i % 4 == 3 else r for i, r in enumerate(made)]


def rollout(policy, params, *, samples=4, key=0, max_tokens=T, temperature=1.0, count=8, **kwargs):
    config = small_config()
    config.rollout.max_tokens, config.rollout.temperature = max_tokens, temperature
    sampling = dataclasses.replace(sampling_of(policy, config.rollout), **kwargs)
    prompts = put_batch(policy.encoder.encode(records(count)), policy.mesh)
    key = jax.random.key(key)
    return prompts, sample(policy.model, params, prompts, key, samples=samples, sampling=sampling)


def train_batch(prompts, rollouts, **changes):
    """A batch with fixed pseudo-random rewards; the first half of a response is reasoning."""
    shape = rollouts.mask.shape
    rewards = np.random.default_rng(0).normal(size=shape[:2]).astype(np.float32)
    half = jnp.arange(shape[-1]) < shape[-1] // 2
    fields = {
        "prompts": prompts,
        "tokens": rollouts.tokens,
        "mask": rollouts.mask,
        "reasoning_mask": rollouts.mask & half,
        "answer_mask": rollouts.mask & ~half,
        "rewards": jnp.asarray(rewards),
        "accuracies": jnp.asarray(rewards > 0, jnp.float32),
        "demonstrated": jnp.zeros(shape[:2], bool),
        "prompt_values": jnp.full(shape[:1], 0.5),
        "step": jnp.asarray(3),
        "sampler_logps": rollouts.logps,
        "old_logps": None,
        "old_entropies": None,
        "reference_logps": jnp.zeros(shape),
        "reference_is_policy": jnp.asarray(False),
    }
    fields |= changes
    # the previous policy is the reference, unless a test says otherwise
    fields.setdefault("previous_logps", fields["reference_logps"])
    fields.setdefault("previous_is_policy", fields["reference_is_policy"])
    return TrainBatch(**fields)


def method(name="rdbcl", **changes):
    config = small_config()
    config.method = name
    config.update_from_flattened_dict(changes)
    return make_method(config)


def update(policy, params, batch, chosen, optimizer=None, **options):
    """One update on a copy of `params`; returns state, metrics, per-sample values."""
    optimizer = optimizer or optax.sgd(1.0)
    config = UpdateConfig(chunk_size=64, **options)
    made = make_update(policy.model, optimizer, chosen, config)
    state = TrainState.create(jax.tree.map(jnp.copy, params), optimizer)
    return made(state, policy.frozen, batch)
