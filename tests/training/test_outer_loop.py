"""The whole line on a very small model: what it writes, which reference it uses, how it resumes."""

import re

import jax
import numpy as np
import pytest

from rdbcl_jax.batches import pytree
from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.cli import run as command_line
from rdbcl_jax.config import RunConfig
from rdbcl_jax.json_files import plain
from rdbcl_jax.models import from_pretrained
from rdbcl_jax.policy import load_policy
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.reporting.samples import read_samples
from rdbcl_jax.results import read_results
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.training import run as run_module
from rdbcl_jax.training.run import train
from rdbcl_jax.workdir import changes
from tests import engine

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """Stands for a signal: nothing in the program may catch it."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A finished run of two tasks, and what the learner was given in each."""
    workdir = tmp_path_factory.mktemp("run")
    calls = []
    learn_task = run_module.learn_task

    def spy(learner, stage, state, **kwargs):
        # the state is donated: keep host copies
        given = jax.device_get({"policy": state.train.params, "reference": stage.reference})
        state, last = learn_task(learner, stage, state, **kwargs)
        calls.append({**given, "learned": jax.device_get(state.train.params), **kwargs})
        return state, last

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "learn_task", spy)
        results = train(engine.small_config(), workdir)
    return workdir, results, calls


def equal(a, b):
    return all(
        (np.asarray(x) == y).all() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


def test_reference_is_the_policy_from_before_the_task(watched):
    workdir, _, (first, second) = watched
    _, base = from_pretrained(workdir / "base", dtype="float32")
    assert equal(first["reference"], base) and equal(first["policy"], base)
    assert not equal(first["learned"], base)
    assert equal(second["reference"], first["learned"])
    assert equal(second["policy"], first["learned"])
    assert second["first_step"] == engine.small_config().training.steps


def test_results(watched):
    workdir, results, _ = watched
    written = read_results(workdir)
    assert written.splits == results.splits and written.config["seed"] == 0
    assert results.status == "done" and results.tasks == ["sum", "jigsaw"]
    for split, count in (("validation", 8), ("test", 16)):
        part = results.splits[split]
        assert np.shape(part.accuracy) == np.shape(part.parse_rate) == (3, 2)
        assert part.count == [count, count]
        last = np.mean(part.accuracy[-1])
        np.testing.assert_allclose(part.metrics["last"], last, rtol=1e-6)
    assert (workdir / "report.html").stat().st_size > 10_000


def test_logs(watched):
    workdir, _, _ = watched
    run = read_run(workdir)
    assert [row["step"] for row in run.steps] == list(range(8))
    for task in range(2):
        rows = [r for r in run.steps if r["task_index"] == task]
        assert rows[0]["kl"] == 0 and rows[0]["rp/mean"] == 1 and rows[0]["rp/std"] == 0
        assert all(r["reward_std"] > 0 for r in rows)  # what is learned is more than rounding
        assert rows[-1]["kl"] > 1e-4
    wanted = "reward reward_std frac_reward_zero_std kl entropy clip_ratio/region_mean step_time "
    wanted += "completions/mean_length completions/min_length completions/max_length num_tokens "
    wanted += "completions/clipped_ratio rewards/format/mean rewards/accuracy/mean kl_coef/mean"
    assert set(wanted.split()) <= run.steps[0].keys()
    assert run.steps[0]["sampler/logp_difference/max"] < 1e-4
    samples = read_samples(workdir)
    assert len(samples) == 8 * 8 * 4
    wanted = "step task record_id prompt completion gold reward advantage kl kl_coef rp accuracy"
    assert set(wanted.split()) <= set(samples.column_names)
    assert {e["task"] for e in run.examples} == {"sum", "jigsaw"}
    example = run.examples[0]
    assert len(example["tokens"]) == len(example["policy_logps"]) == len(example["spans"])


def test_batches_and_keys_differ_between_steps_and_tasks(watched):
    samples = read_samples(watched[0]).to_pydict()
    by_step = {}
    for step, record in zip(samples["step"], samples["record_id"], strict=True):
        by_step.setdefault(step, []).append(record.split("-")[-1])
    assert len({tuple(v) for v in by_step.values()}) == 8


# within the first task and at its end methods are killed: test_every_method.py
@pytest.mark.parametrize("kill_at", [*(pytest.param(n, marks=pytest.mark.long) for n in (2, 4)), 6])
def test_killed_and_resumed_equals_uninterrupted(watched, tmp_path, monkeypatch, kill_at):
    """Killed within the first task, at its end, and within the second."""
    workdir, expected, _ = watched
    config = engine.small_config()
    config.training.checkpoint_every = 1
    (tmp_path / "base").symlink_to(workdir / "base")  # made once, by the fixture
    save = run_module.Checkpoints._save

    def save_and_die(self, name, *args, **kwargs):
        save(self, name, *args, **kwargs)
        if name == ("task_01" if kill_at == 4 else f"step_{kill_at:08}"):
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_module.Checkpoints, "_save", save_and_die)
        train(config, tmp_path)
    results = train(config, tmp_path)
    assert results.splits == expected.splits
    ours, theirs = read_run(tmp_path), read_run(workdir)
    timings = {"step_time"}
    for mine, other in zip(ours.steps, theirs.steps, strict=True):
        assert {k: v for k, v in mine.items() if k not in timings} == {
            k: v for k, v in other.items() if k not in timings
        }
    assert read_samples(tmp_path).equals(read_samples(workdir))
    again = train(config, tmp_path)  # nothing left to do
    assert again.splits == expected.splits


@pytest.mark.long  # its layout is read by one function, and no version writes it any more
def test_a_run_whose_state_was_saved_in_the_first_layout_goes_on(watched, tmp_path, monkeypatch):
    """It was a pair: the train state, and beside it what the host carries."""
    workdir, expected, _ = watched
    config = engine.small_config()
    config.training.checkpoint_every = 1
    (tmp_path / "base").symlink_to(workdir / "base")
    save_step = run_module.Checkpoints.save_step

    @pytree
    class Progress:
        batches: object
        tracker: object

    def save_as_before_and_die(self, step, state):
        save_step(self, step, (state.train, Progress(state.batches, state.tracker)))
        if step == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_module.Checkpoints, "save_step", save_as_before_and_die)
        train(config, tmp_path)
    assert train(config, tmp_path).splits == expected.splits
    assert read_samples(tmp_path).equals(read_samples(workdir))


def test_several_updates_per_batch_leave_the_reference_where_it_was(watched, tmp_path):
    config = engine.small_config()
    config.sequence, config.training.steps = ("sum",), 1
    config.training.updates_per_batch = 2
    (tmp_path / "base").symlink_to(watched[0] / "base")
    train(config, tmp_path)
    (row,) = read_run(tmp_path).steps  # of the second update of the task's first batch
    assert row["kl"] > 0 and row["rp/mean"] == 1  # RP is of the policy that sampled


@pytest.mark.parametrize("kind", ["lora", "freeze_vision"])
def test_only_what_learns_is_changed_and_saved(watched, tmp_path, kind):
    config = engine.small_config()
    config.training.steps = 2
    config.sequence = ("sum",)
    if kind == "lora":
        config.model.lora.rank = 4
    else:
        config.model.freeze_vision = True
    (tmp_path / "base").symlink_to(watched[0] / "base")
    train(config, tmp_path)
    config.model.path = str(tmp_path / "base")
    policy, params = load_policy(config, make_mesh())
    names = {
        jax.tree_util.keystr(k, simple=True, separator="/")
        for k, _ in jax.tree_util.tree_leaves_with_path(params)
    }
    wanted = r"/lora_[ab]$" if kind == "lora" else r"^language_model/"
    assert names and all(re.search(wanted, name) for name in names)
    learned = Checkpoints(tmp_path).restore_task(1, params)  # has exactly these leaves
    assert not equal(learned, params)
    # the reference and the policy hold the frozen half once
    whole, again = policy.whole(learned), policy.whole(params)
    frozen = jax.tree.leaves(policy.frozen)
    shared = {id(a) for a in jax.tree.leaves(whole)} & {id(a) for a in jax.tree.leaves(again)}
    assert {id(a) for a in frozen} == shared


def test_merged_adapters_add_their_share_of_what_a_task_added(watched, tmp_path, monkeypatch):
    """Before the first task they add nothing. That holds of A·B, and of no average of factors."""
    config = engine.small_config()
    config.training.steps, config.training.merge, config.sequence = 2, 0.25, ("sum",)
    config.model.lora.rank = 4
    learned, learn_task = [], run_module.learn_task

    def spy(*args, **kwargs):
        state, last = learn_task(*args, **kwargs)
        learned.append(jax.device_get(state.train.params))
        return state, last

    monkeypatch.setattr(run_module, "learn_task", spy)
    (tmp_path / "base").symlink_to(watched[0] / "base")
    train(config, tmp_path)
    config.model.path = str(tmp_path / "base")
    _, params = load_policy(config, make_mesh())
    left = Checkpoints(tmp_path).restore_task(1, params)

    def added(policy):
        factors = map(np.asarray, jax.tree.leaves(policy))  # A, B, A, B, …
        return [a.astype(float) @ b for a, b in zip(factors, factors, strict=True)]

    for found, wanted in zip(added(left), added(learned[0]), strict=True):
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(found, 0.75 * wanted, atol=1e-5 * np.abs(wanted).max())


def test_another_config_in_a_started_workdir_is_refused(watched):
    config = engine.small_config()
    config.training.steps, config.seed = 3, 3
    with pytest.raises(ValueError, match="steps of another config") as error:
        train(config, watched[0])
    assert "training.steps: 4 in the workdir, 3 now" in str(error.value)
    assert "seed: 0 in the workdir, 3 now" in str(error.value)


def test_a_field_that_is_new_since_a_workdir_was_written_has_its_default_there():
    config = RunConfig.of(engine.small_config())
    saved = plain(config) | {"gate": {"records": 3}}  # which is none of a run's
    assert changes(saved, config) == {}
    del saved["portability"]["verified"], saved["rollout"]["temperature"]
    assert changes(saved, config) == {}
    config = config.changed({"portability.verified": True, "sequence": ("sum",)})
    saved["gone"] = 1
    assert changes(saved, config) == {
        "gone": (1, None),
        "portability.verified": (False, True),
        "sequence": (["sum", "jigsaw"], ["sum"]),
    }


def test_report_and_comparison(watched, tmp_path, monkeypatch, capsys):
    workdir, _, _ = watched
    config = engine.small_config()
    config.method, config.training.steps = "grpo", 2
    config.kl.beta = 0.0  # no reference pass at all
    other = tmp_path / "grpo"
    other.mkdir()
    (other / "base").symlink_to(workdir / "base")
    results = train(config, other)
    assert results.method == "grpo"
    assert "kl" not in read_run(other).steps[-1]
    monkeypatch.setattr(
        "sys.argv", ["rdbcl", "report", str(workdir), str(other), f"--out={tmp_path / 'out'}"]
    )
    with pytest.raises(SystemExit) as end:
        command_line()
    assert not end.value.code
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"compare.html", "compare.md", "compare.tex"} <= written
