"""Numbers that are not finite, batches without a signal, rates, and memory: what a run does."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.config import OptimizerConfig, RunConfig
from rdbcl_jax.finite import NotFinite
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.reporting.samples import read_samples
from rdbcl_jax.rewards.functions import FunctionFailed
from rdbcl_jax.sharding import RowShard
from rdbcl_jax.training import experience, run
from rdbcl_jax.training import task as one_task
from rdbcl_jax.training.memory import PHASES, OutOfMemory, within_memory
from rdbcl_jax.training.metrics import reward_means
from rdbcl_jax.training.not_finite import what_was_not_finite
from rdbcl_jax.training.optimizer import learning_rate, make_optimizer
from rdbcl_jax.training.run import train
from rdbcl_jax.training.supervised import fine_tune
from tests import engine
from tests.reliability import faults
from tests.tiny_runs import tiny_config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return engine.write_random_model(tmp_path_factory.mktemp("model") / "base")


def config(base, **changes):
    small = {
        "sequence": ("sum",),
        "evaluation.every": 0,
        "data.validation_count": 4,
        "data.test_count": 4,
        "kl.beta": 0.04,
    }
    return tiny_config(base, "grpo", **{**small, **changes})


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_stops_after_bad_steps_in_a_row_and_loses_nothing(base, tmp_path):
    """And a later call goes on from the state of the last good update."""
    asked = config(base, **{"training.steps": 7, "training.max_skipped": 3})
    with faults.reference_of_nan(from_step=2, row=5), pytest.raises(NotFinite) as error:
        train(asked, tmp_path)
    before = rows(tmp_path)
    assert [row["skipped_updates"] for row in before] == [0, 0, 1, 2, 3]
    assert [row["updates"] for row in before] == [1, 2, 2, 2, 2]
    record = samples_of(tmp_path, step=2)["record_id"][5 * 4]
    assert "step 4: the loss or gradient of 3 updates in a row was not finite" in str(error.value)
    assert f"in step 2, the reference policy's log-probs of record {record!r} (NaN)" in str(
        error.value
    )
    assert Checkpoints(tmp_path).steps()[-1] == 5
    train(asked, tmp_path)
    assert "sum: 3 updates were left out" in (tmp_path / "report.html").read_text()
    after = rows(tmp_path)
    assert [row["updates"] for row in after] == [1, 2, 2, 2, 2, 3, 4]
    np.testing.assert_allclose([row["learning_rate"] for row in after], 1e-3, rtol=1e-6)


def samples_of(workdir, step):
    import pyarrow.parquet as pq

    table = pq.ParquetDataset(sorted((workdir / "samples").glob("*.parquet"))).read().to_pydict()
    chosen = [i for i, at in enumerate(table["step"]) if at == step]
    return {name: [values[i] for i in chosen] for name, values in table.items()}


def same(prompts, completions, **columns):
    """A reward that says nothing."""
    return [0.5] * len(completions)


def test_equal_rewards_leave_every_bit_as_it_was(base, tmp_path, capsys):
    """A KL term alone makes no step, though rounding gives it a gradient."""
    asked = config(base, **{"training.steps": 3, "optimizer.weight_decay": 0.1})
    asked.rewards.functions = {"same": f"{__name__}:same"}
    asked.rewards.weights = {"same": 1.0}
    assert train(asked, tmp_path / "a").unchanged == ["sum"]
    found = rows(tmp_path / "a")
    assert [row["no_signal"] for row in found] == [1, 1, 1] and found[-1]["updates"] == 0
    # no update was made: the policy is the reference, to the last bit
    assert all(row["kl"] == 0 for row in found)
    assert all(row["frac_reward_zero_std"] == 1 and row["reward_std"] == 0 for row in found)
    assert same_as_base(tmp_path / "a", base)
    (warning,) = read_run(tmp_path / "a").warnings
    assert "sum: nothing was learned" in warning and "3 of 3 batches had no signal" in warning
    assert warning in (tmp_path / "a/report.html").read_text()
    assert f"warning: {warning}" in capsys.readouterr().out


def moody(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, **columns):
    """A reward of nothing that fails in the middle while it is in a bad mood."""
    if trainer_state.global_step == 2 and MOODS:
        raise KeyError("missing\nin two lines")
    log_metric("mood", trainer_state.global_step / trainer_state.max_steps)
    log_extra("tokens", [len(ids) for ids in completion_ids])
    return [0.5] * len(completions)


MOODS = ["bad"]


def test_a_reward_function_that_raises_costs_no_step(base, tmp_path):
    same = {"training.steps": 3, "optimizer.weight_decay": 0.1}  # as above: one program serves
    asked = config(base, **same, **{"training.checkpoint_every": 1})
    asked.rewards.functions = {"moody": f"{__name__}:moody"}
    asked.rewards.weights = {"moody": 1.0}
    message = r"'moody' raised KeyError on record 'sum-.*errors.log, and the same command goes on"
    with pytest.raises(FunctionFailed, match=message) as end:
        train(asked, tmp_path / "a")
    MOODS.clear()
    assert "\n" not in str(end.value)
    trace = (tmp_path / "a/errors.log").read_text()
    assert "Traceback" in trace and 'raise KeyError("missing' in trace
    assert train(asked, tmp_path / "a").status == "done"
    found = rows(tmp_path / "a")
    assert [row["mood"] for row in found] == pytest.approx([0, 1 / 3, 2 / 3])
    samples = read_samples(tmp_path / "a").to_pydict()
    assert samples["tokens"] == [str(length) for length in samples["length"]]


def test_updates_that_change_nothing_are_said(base, tmp_path):
    asked = config(base, **{"training.steps": 1, "optimizer.learning_rate": 0.0})
    train(asked, tmp_path)
    (warning,) = read_run(tmp_path).warnings
    assert warning.endswith("as before: 1 updates were too small for the parameters' type")


def same_as_base(workdir, base):
    """Whether the policy after the first task is the base, bit by bit."""
    _, params = engine.load(base)
    found = Checkpoints(workdir).restore_task(1, jax.tree.map(abstract, params))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def abstract(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def test_a_schedule_ends_with_the_task_and_the_rate_logged_is_the_one_used(base, tmp_path):
    changes = {"training.steps": 3, "training.updates_per_batch": 2}
    asked = config(base, **changes, **{"optimizer.schedule": "linear"})
    train(asked, tmp_path)
    rates = [row["learning_rate"] for row in rows(tmp_path)]
    # six updates, of which the first warms up; the second, fourth and sixth are logged, the first,
    # third and last of the five that are left
    np.testing.assert_allclose(rates, [1e-3, 1e-3 * 3 / 5, 1e-3 / 5], rtol=1e-5)


def test_the_rate_that_an_optimizer_uses():
    """Measured by what it does to a parameter whose gradient is constant."""
    options = OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup_steps=2)
    optimizer, rate = make_optimizer(options, 6), learning_rate(options, 6)
    params = {"norm": {"scale": jnp.ones(4)}}
    state = optimizer.init(params)
    for n in range(1, 7):
        updates, state = optimizer.update({"norm": {"scale": jnp.ones(4)}}, state, params)
        np.testing.assert_allclose(-updates["norm"]["scale"][0], rate(n), rtol=1e-3, atol=1e-9)


def test_reward_means_are_over_the_rewards_that_apply():
    nan = np.nan
    rewards = np.array([[1, nan, 3, nan], [2, nan, nan, nan], [nan] * 4, [1, 1, 1, 1]])
    informative = np.array([True, False, False, False])
    found = reward_means(rewards, informative, RowShard(0, 1, True))
    assert found == {
        "reward": pytest.approx(10 / 7),
        "reward_std": pytest.approx(2**0.5 / 3),  # of three groups to which a reward applies
        "frac_reward_zero_std": 0.75,
    }
    nothing = reward_means(rewards[2:3], informative[2:3], RowShard(0, 1, True))
    assert nothing == {"frac_reward_zero_std": 1.0}


# ------------------------------------------------------------------ parameters


def test_a_weight_that_is_not_finite_is_refused_with_its_name(base, tmp_path):
    """When a base is read, before anything is made of it."""
    shutil.copytree(base, tmp_path / "base")
    name = faults.spoil(tmp_path / "base", "layers.1.mlp.up_proj", np.inf)
    with pytest.raises(NotFinite) as error:
        train(config(tmp_path / "base"), tmp_path / "run")
    assert str(error.value) == (
        f"{tmp_path}/base: tensor {name} holds NaN or an infinite number, read as float32"
    )
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_no_parameter_is_saved_that_is_not_finite(base, tmp_path):
    from rdbcl_jax.models import save_pretrained

    policy, params = engine.load(base)
    params = jax.tree.map(jnp.copy, params)
    params["visual"]["merger"]["ln_q"]["scale"] = (
        params["visual"]["merger"]["ln_q"]["scale"] * jnp.nan
    )
    with pytest.raises(NotFinite, match="out is not written: visual/merger/ln_q/scale, index 0"):
        save_pretrained(tmp_path / "out", policy.model, params, like=base)
    assert not (tmp_path / "out").exists()


def test_fine_tuning_that_is_not_finite_stops(base):
    policy, params = engine.load(base)
    lost = jax.tree.map(lambda a: a * jnp.nan, params)
    pairs = [(record, "<think> 3 </think> <answer> 3 </answer>") for record in engine.records(4)]
    options = {"steps": 9, "batch_size": 4, "chunk_size": 64, "seed": 0, "max_skipped": 2}
    seen = []
    with pytest.raises(
        NotFinite, match=r"2 updates in a row were left out, since their loss \(nan"
    ):
        fine_tune(
            policy, lost, pairs, OptimizerConfig(), **options, on_step=lambda *at: seen.append(at)
        )
    assert [step for step, _ in seen] == [1]


# ------------------------------------------------------------------ memory


ASKS_FOR_ARRAYS = {  # in each phase
    "loading": (run, "load_policy"),
    "evaluation": (run, "evaluate"),
    "boundary": (run, "dtype_of_frozen"),
    "sampling": (experience, "put_batch"),
    "reference": (one_task, "frozen_logprobs"),
    "update": (one_task, "local_rows"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_out_of_memory_is_one_line_with_its_phase(base, tmp_path, monkeypatch, phase):
    """XLA's own error, of an array of 32 TiB, where a phase asks for its arrays."""
    place, name = ASKS_FOR_ARRAYS[phase]
    real = getattr(place, name)

    def hungry(*args, **kwargs):
        jnp.zeros(2**45, jnp.uint8).block_until_ready()
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, hungry)
    with pytest.raises(OutOfMemory) as error:
        train(config(base), tmp_path)
    line = str(error.value)
    assert line.startswith(
        f"out of memory on the device while {PHASES[phase].doing}: Out of memory"
    )
    assert all(f"{name}=" in line for name in PHASES[phase].sizes)
    assert PHASES[phase].help in line and "\n" not in line


def test_other_errors_of_xla_pass():
    with pytest.raises(jax.errors.JaxRuntimeError), within_memory(RunConfig(), "update"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_every_process_asks_for_the_log_probs_whatever_it_finds_in_its_own_rows():
    """They are computed by all processes together: one that asks alone waits for ever."""
    asked = []

    def logprobs(*_):
        asked.append(True)
        return jnp.zeros((1, 2, 3))

    shape = (1, 2, 3)
    batch = types.SimpleNamespace(
        prompts=None,
        rewards=jnp.array([[jnp.inf, 0.0]]),
        mask=jnp.ones(shape, bool),
        sampler_logps=jnp.zeros(shape),
        old_logps=None,
        previous_logps=None,
        reference_logps=None,
    )
    scored = types.SimpleNamespace(records=[types.SimpleNamespace(id="r0")])
    learner = types.SimpleNamespace(logprobs=logprobs)
    found = what_was_not_finite(learner, {}, scored, batch, ({}, {}))
    assert found == "the reward of record 'r0' (inf)" and asked == [True]
