"""What a run must not do: hold the base weights twice, compile for a shape twice, hold logits."""

import contextlib
import dataclasses
import gc
import math
import re
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from rdbcl_jax.batches import PromptBatch, TrainBatch
from rdbcl_jax.data.records import Record
from rdbcl_jax.methods import make_method
from rdbcl_jax.models import decoder, from_config, lora, partition, save_pretrained
from rdbcl_jax.models.qwen_vl.config import read_config
from rdbcl_jax.models.qwen_vl.inputs import Inputs
from rdbcl_jax.models.qwen_vl.model import QwenVL
from rdbcl_jax.policy import load_policy
from rdbcl_jax.rewards.scoring import RewardConfig
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.sharding import (
    abstract,
    batch_shardings,
    make_mesh,
    param_shardings,
    put_batch,
)
from rdbcl_jax.toy import digits_suite
from rdbcl_jax.toy.tiny import write_tiny_model
from rdbcl_jax.training import memory, setup
from rdbcl_jax.training.learner import make_learner
from rdbcl_jax.training.logprobs import compiled_logprobs
from rdbcl_jax.training.stage import Stage
from rdbcl_jax.training.state import TrainState
from rdbcl_jax.training.task import learn_task
from rdbcl_jax.training.update import UpdateConfig, make_update
from tests import engine
from tests.tiny_runs import killed_at, tiny_config

pytestmark = pytest.mark.slow

WIDE = dataclasses.replace(engine.SIZE, width=128, mlp_width=512)  # much more than a batch


def live_bytes():
    """Of all arrays on all devices; a buffer that two arrays share counts once."""
    gc.collect()
    parts = [part.data for array in jax.live_arrays() for part in array.addressable_shards]
    return sum({part.unsafe_buffer_pointer(): part.nbytes for part in parts}.values())


def nbytes(params):
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(params))


@pytest.fixture(scope="module", autouse=True)
def what_was_there_before():
    """Is not looked through again and again: that took most of this file's time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("wide"), WIDE)
    model = QwenVL(read_config(path))
    save_pretrained(path, model, model.init(jax.random.key(1)), like=path)
    return path


def learn(learner, stage, base, report):
    """All steps of a task, nothing saved."""
    learn_task(
        learner,
        stage,
        learner.start(stage, jax.tree.map(jnp.copy, base)),
        start=0,
        first_step=0,
        report=report,
        save=lambda done, state: None,
        probe=lambda params: {},
    )


def learned_with(path, rank, **model):
    """(most bytes held by a learner that has a reference, in float32 copies of the model; the
    metrics of its steps)."""
    config = engine.small_config()
    config.model.path, config.model.lora.rank = str(path), rank
    config.model.update(model)
    config.training.steps, config.rollout.samples, config.rollout.max_tokens = 2, 2, 6
    before = live_bytes()
    policy, base = load_policy(config, engine.one_device())
    method, rewards = make_method(config), RewardConfig(**config.rewards.to_dict())
    learner = make_learner(config, policy, base, method, rewards)
    held, steps = [], []

    def report(index, metrics, samples):
        assert index == 0 or metrics["kl"] > 0  # the reference is another policy
        held.append(live_bytes() - before)
        steps.append(metrics)

    stage = Stage(digits_suite.make_records("sum", "train", 16, seed=0), base, base)
    learn(learner, stage, base, report)
    assert len(held) == 2
    one = 4 * sum(a.size for a in jax.tree.leaves(policy.whole(base)))
    return max(held) / one, steps


def test_lora_holds_the_base_weights_once_and_in_the_dtype_that_reads_them(wide_model):
    """Policy, reference and optimizer have adapters of their own, and batches are small; what is
    learned on a base in half the bits is the same."""
    whole, steps = learned_with(wide_model, 1, dtype="bfloat16", frozen_dtype="float32")
    half, others = learned_with(wide_model, 1, dtype="bfloat16")
    assert 1 <= whole < 1.5 and 0.5 <= half < whole - 0.45
    for found, expected in zip(others, steps, strict=True):
        for name in ("loss", "reward", "entropy", "grad_norm", "rp/mean"):
            assert found[name] == pytest.approx(expected[name], rel=1e-2, abs=1e-4), name


def test_no_phase_of_a_run_holds_more_than_a_step(wide_model, tmp_path, monkeypatch):
    """Policy, the one from before the task and two moments: in the second task, from one task to
    the next and where a run goes on too."""
    most, inner = defaultdict(float), memory.within_memory
    one = nbytes(from_config(wide_model).abstract_params())

    def look(phase):
        most[phase] = max(most[phase], (live_bytes() - before) / one)

    @contextlib.contextmanager
    def watched(config, phase):
        look(phase)
        with inner(config, phase):
            yield
        look(phase)

    monkeypatch.setattr(memory, "within_memory", watched)
    monkeypatch.setattr(setup, "make_mesh", lambda **sizes: engine.one_device())
    short = {"rollout.samples": 2, "rollout.max_tokens": 4, "rollout.prompts": 2}
    steps = {"training.steps": 2, "training.checkpoint_every": 1}
    # what is saved behind the step is held until it is written: on a CPU that is the state itself
    config = tiny_config(wide_model, "grpo", **short, **steps, **{"checkpoint.background": False})
    for _ in ("from the start", "from the first step of the second task on"):
        before = live_bytes()
        killed_at(3, config, tmp_path / "run")  # in its last step
        step = max(most[phase] for phase in ("sampling", "reference", "update"))
        assert 4 <= step < 4.3 and 1 <= most["loading"] < 1.3
        assert max(most.values()) < step + 0.1, dict(most)
        most.clear()


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
        grids |= {tuple(grid) for grid in batch.model_inputs.images.grid[:, 0].tolist()}
        shapes |= {(batch.tokens.shape, batch.model_inputs.images.patches.shape)}
        hidden, _ = prefill(policy.whole(params), put_batch(batch, policy.mesh))
        assert np.isfinite(hidden).all()
    assert len(grids) > 20 and 1 < len(shapes) <= 4
    assert prefill._cache_size() == len(shapes)


COMPILED = "/jax/core/compile/backend_compile_duration"


def test_nothing_compiles_after_the_second_step(tmp_path):
    """Twenty steps on pictures of many sizes, prompts of many lengths, with and without a picture;
    every second one is scored by a reference that is another policy."""
    config = engine.small_config()
    config.model.path = str(engine.write_random_model(tmp_path))
    config.data.prompt_lengths, config.data.patch_slots = (80,), (256,)
    config.training.steps = 20
    policy, base = load_policy(config, engine.one_device())
    rng, records = np.random.default_rng(0), []
    for i in range(160):
        size = tuple(rng.integers(5, 90, 2).tolist())
        images = (Image.new("RGB", size),) if i % 5 else ()
        prompt = " ".join(["sum", *"3" * int(rng.integers(1, 9))])
        records.append(Record(str(i), "sum", prompt, images, "1", "exact", {}))
    rewards = RewardConfig(**config.rewards.to_dict())
    learner = make_learner(config, policy, base, make_method(config), rewards)
    stage, steps, compiled = Stage(records, base, base), [], []

    def listen(event, duration, **kwargs):
        if event == COMPILED:
            compiled.append(len(steps))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        learn(learner, stage, base, lambda index, metrics, samples: steps.append(metrics))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(steps) == 20 and len({step["num_tokens"] for step in steps}) > 10
    # the first step samples and updates, the second scores a reference, and reports the first
    assert compiled and max(compiled) <= 1, compiled


def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)


def abstract_prompts(count, length):
    """Prompts without pictures, for the compiler alone."""
    return PromptBatch(
        tokens=array(jnp.int32, count, length),
        mask=array(bool, count, length),
        next_position=array(jnp.int32, count),
        record_ids=array(jnp.int32, count),
        model_inputs=Inputs(
            positions=array(jnp.int32, count, length, 3),
            image_slots=array(jnp.int32, count, length),
            images=None,
        ),
    )


def programs(model, shape, chunk, trained=partition.ALL):
    """The sampler, the log-probs and the update of a batch [P, G, T], lowered and never run."""
    whole = model.abstract_params()
    prompts = abstract_prompts(shape[0], 8)
    responses = array(jnp.int32, *shape), array(bool, *shape)
    per_token, per_sample = array(jnp.float32, *shape), array(jnp.float32, *shape[:2])
    batch = TrainBatch(
        prompts=prompts,
        tokens=responses[0],
        mask=responses[1],
        reasoning_mask=responses[1],
        answer_mask=responses[1],
        rewards=per_sample,
        accuracies=per_sample,
        demonstrated=array(bool, *shape[:2]),
        prompt_values=array(jnp.float32, shape[0]),
        step=array(jnp.int32),
        sampler_logps=per_token,
        reference_logps=per_token,
        previous_logps=per_token,
    )
    optimizer = optax.sgd(1.0)
    method = make_method(engine.small_config())
    update = make_update(model, optimizer, method, UpdateConfig(chunk_size=chunk))
    shapes = partition.frozen_in(whole, trained, model.stacks, jnp.dtype(model.dtype))
    params, frozen = partition.split(shapes, trained)
    state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), params)
    read = jax.eval_shape(lambda p: partition.read_in(p, model.stacks, model.dtype), whole)
    key = jax.eval_shape(lambda: jax.random.key(0))
    sampling = Sampling(max_tokens=shape[-1], stop_ids=(1,))
    return {
        "sample": sample.lower(model, read, prompts, key, samples=shape[1], sampling=sampling),
        "logprobs": compiled_logprobs.lower(
            model, read, prompts, *responses, temperature=1.0, chunk_size=chunk
        ),
        "update": update.lower(state, frozen, batch),
    }


def beside(programs):
    """Bytes that each needs beside what it is given, by the compiler's own account."""
    return {
        name: program.compile().memory_analysis().temp_size_in_bytes
        for name, program in programs.items()
    }


def test_no_program_holds_the_logits_of_a_batch(tmp_path):
    """The vocabulary of Qwen2.5 on a narrow model: sampler, log-probs and update. The sampler holds
    the logits of one token of each rollout."""
    write_tiny_model(tmp_path, engine.SIZE)
    config = read_config(tmp_path)
    text = dataclasses.replace(config.text, vocab_size=151_936)
    model = QwenVL(dataclasses.replace(config, text=text))
    shape, chunk = (4, 4, 64), 16
    rows, vocabulary = 16, text.vocab_size
    logits = 4 * rows * shape[-1] * vocabulary  # 622 MB
    used = beside(programs(model, shape, chunk))
    head = 4 * text.width * vocabulary
    assert used["sample"] < 5 * 4 * rows * vocabulary + 2 * head, used
    assert used["logprobs"] < 3 * 4 * chunk * vocabulary + 2 * head, used
    # gradients of the embedding and of the head, which is the same array
    assert used["update"] < 3 * 4 * chunk * vocabulary + 6 * head, used
    assert max(used.values()) < logits / 3, used


def test_no_program_holds_parameters_of_16_bits_twice(tmp_path, monkeypatch):
    """Adapters on a base that is read as it is held: neither copied nor widened, but for a layer
    at a time. (Layers that are small are laid out for decoding; those of this model are not.)"""
    monkeypatch.setattr(decoder, "_TAKEN_APART", 0)
    config = read_config(write_tiny_model(tmp_path, dataclasses.replace(WIDE, depth=12)))
    model = QwenVL(config, dtype="bfloat16", remat="full")
    model = lora.adapt_model(model, lora.LoRA(rank=1))
    shape = (2, 2, 4)
    held = 2 * sum(a.size for a in jax.tree.leaves(model.abstract_params()))
    used = beside(programs(model, shape, 8, partition.ADAPTERS))
    assert max(used.values()) < held / 3, (used, held)


TRAVELS = r" = \(?(\w+\[[\d,]*\]).* (?:all-gather|all-to-all|collective-permute)(?:-start)?\("


def in_loops(program):
    """Numbers in each array that travels whole between devices, again and again."""
    loops = program.split("\nENTRY ")[0]
    shapes = re.findall(TRAVELS, loops)
    return [math.prod(map(int, re.findall(r"\d+", shape.split("[")[1]))) for shape in shapes]


@pytest.mark.parametrize(("sizes", "most"), [((1, 8, 1), 0), ((1, 2, 4), 2048)])
def test_no_token_waits_for_parameters_cache_or_logits_of_others(tmp_path, sizes, most):
    """With parameters split by fsdp nothing travels while tokens are drawn; by tensor queries do,
    but not a matrix, the keys of a layer or the logits of a token. Two KV heads are on four
    devices, and a block of ids on two."""
    config = read_config(write_tiny_model(tmp_path, WIDE))
    text = dataclasses.replace(config.text, vocab_size=1000)
    mesh = make_mesh(*sizes)
    model = QwenVL(dataclasses.replace(config, text=text), mesh=mesh)
    shapes = model.abstract_params()
    params = abstract(shapes, param_shardings(shapes, model.param_axes, mesh))
    prompts = abstract_prompts(8, 8)
    prompts = abstract(prompts, batch_shardings(prompts, mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    sampling = Sampling(max_tokens=65, stop_ids=(1,))
    program = sample.lower(model, params, prompts, key, samples=4, sampling=sampling).compile()
    numbers = in_loops(program.as_text())
    assert max(numbers, default=0) <= most, sorted(numbers)


def test_rematerialisation_trades_products_for_memory(tmp_path):
    """Products that the compiled gradient runs: all once, the attention's again, all again."""
    config = read_config(write_tiny_model(tmp_path, engine.SIZE))
    length, group = 64, 2
    prompts = abstract_prompts(2, length)
    responses = array(jnp.int32, 2, group, length), array(bool, 2, group, length)
    products, memory = [], []
    for remat in ("none", "dots", "full"):
        model = QwenVL(config, remat=remat)
        grad = jax.grad(lambda *args, model=model: model.response_hidden(*args).sum())
        compiled = jax.jit(grad).lower(model.abstract_params(), prompts, *responses).compile()
        products.append(compiled.as_text().count(" dot("))
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    assert products[0] < products[1] < products[2], products
    assert memory[0] > memory[1] > memory[2], memory
