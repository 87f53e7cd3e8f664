"""Every method through the whole line on a very small model."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.reporting.samples import read_samples
from rdbcl_jax.rewards.scoring import score as score_texts
from rdbcl_jax.training import run as run_module
from rdbcl_jax.training.collect import collect
from rdbcl_jax.training.run import train
from rdbcl_jax.training.stage import Anchors
from tests import engine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(engine.write_random_model(tmp_path_factory.mktemp("model") / "base"))


def tiny(method, **changes):
    config = engine.small_config()
    config.method, config.training.steps = method, 2
    config.rollout.samples = 1 if method == "mssr" else 4
    # a reward that varies from the start
    config.rewards.functions = {"brief": "tests.engine:brief"}
    config.rewards.weights = {"brief": 1.0, "accuracy": 1.0}
    config.evaluation.batch_size = 32
    config.update_from_flattened_dict(changes)
    return config


def run(config, workdir, base):
    config.model.path = base
    return train(config, workdir)


def test_zero_shot_repeats_the_base(base, tmp_path):
    results = run(tiny("zero_shot"), tmp_path, base)
    for part in results.splits.values():
        assert np.shape(part.accuracy) == (3, 2)
        assert part.accuracy[0] == part.accuracy[1] == part.accuracy[2]
    assert results.status == "done"


CASES = {
    "dr_grpo": {},
    "gspo": {},
    "cispo": {},
    "rloo": {},
    "dapo": {"rollout.resample": 2},
    "mssr": {"mssr.shaping": "full", "mssr.survey": True},
    "dyme": {},
    "sft": {},
    "rapo": {"rapo.ctan": True},
    "replay": {"kl.beta": 0.1, "kl.reference": "ema", "replay.anchor": "old"},
    "ewc": {"ewc.sequences": 16},
    "lwf": {},
    "joint": {},
    "rdbcl": {"portability.kind": "static", "portability.control": "shuffled"},
    "portable_replay": {"portability.verified": True, "portability.control": "strength"},
    # what composes with any method is tried with these
    "pcurl": {
        "kl.portability": True,
        "kl.schedule": "rise",
        "prompts.order": "variance",
        "prompts.samples": 4,
        "training.steps": 3,  # where nothing is right, the last third alone says something
    },
    "reinforce_ada": {"prompts.order": "volatility"},
    "shuffle_r1": {"prompts.order": "stages", "prompts.samples": 2},
    "sft_rl": {
        "demonstrations.mixture": "progressive",
        "loss.mask_truncated": True,
        "loss.entropy_bonus": 0.01,
        "loss.entropy_share": 0.5,
    },
}
# their losses, in which alone they differ from others, have tests of their own
LONG = ("dr_grpo", "gspo", "cispo", "rloo")
# within the second task; where a task leaves more than its policy to the next, after the first
WITHIN = "step_00000003"
KILLED_AFTER = {
    **dict.fromkeys(("mssr", "replay", "rdbcl", "rapo", "reinforce_ada"), WITHIN),
    "pcurl": "step_00000004",
    "ewc": "task_01",
}


REPLAYED = [{"sum": 8}, {"jigsaw": 6, "sum": 2}]
TASKS_OF_PROMPTS = {  # of a task's first step, where not all are its own
    "replay": REPLAYED,
    "portable_replay": REPLAYED,
    "joint": [{"sum": 4, "jigsaw": 4}, {"sum": 5, "jigsaw": 3}],
    "pcurl": [{"sum": 7}, {"jigsaw": 7}],  # half of them are drawn with replacement
    "reinforce_ada": [{"sum": 1}, {"jigsaw": 1}],
}
# of each step, where it is not all the responses that are learned from
SAMPLED = {"sft": {0}, "dapo": {32, 64}, "shuffle_r1": {32}, "reinforce_ada": {128}}


def prompts_by_task(workdir, steps):
    """How many prompts of each task the first step of each task had."""
    rows = read_samples(workdir).select(["step", "record_id"]).to_pylist()
    found = [{row["record_id"] for row in rows if row["step"] == step} for step in (0, steps)]
    return [dict(Counter(name.split("-")[0] for name in ids)) for ids in found]


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.long if m in LONG else ()) for m in CASES]
)
def test_every_method_runs_and_resumes_to_the_same_bits(base, tmp_path, monkeypatch, method):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = tiny(method, **CASES[method])
    results = run(config, whole, base)
    steps = read_run(whole).steps
    assert results.status == "done" and len(steps) == 2 * config.training.steps
    assert all(np.isfinite(row["loss"]) and row["skipped_updates"] == 0 for row in steps)
    assert any(row["grad_norm"] > 0 for row in steps)
    found = prompts_by_task(whole, config.training.steps)
    assert found == TASKS_OF_PROMPTS.get(method, [{"sum": 8}, {"jigsaw": 8}])
    learned = Counter(read_samples(whole)["step"].to_pylist())
    for row in steps:
        assert row["sampled"] in SAMPLED.get(method, {learned[row["step"]]}), row
    if method not in KILLED_AFTER:
        return
    config.training.checkpoint_every = 1
    save = run_module.Checkpoints._save

    def save_and_die(self, name, state, *drop, **options):
        save(self, name, state, *drop, **options)
        if name == KILLED_AFTER[method]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.Checkpoints, "_save", save_and_die)
        train(config, parts)
    assert train(config, parts).splits == results.splits
    assert read_samples(parts).equals(read_samples(whole))
    for mine, other in zip(read_run(parts).steps, steps, strict=True):
        assert {**mine, "step_time": 0} == {**other, "step_time": 0}


def test_a_tracker_that_forgets_by_the_policys_movement_resumes_to_the_same_bits(
    base, tmp_path, monkeypatch
):
    """Killed when a step's KL has been measured and the tracker has not seen it yet."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # so far from its target that every KL changes what the tracker forgets
    config = tiny("mssr", **{"mssr.kl_target": 1e-4, "optimizer.learning_rate": 1e-2})
    config.sequence, config.training.steps = ("sum",), 4
    run(config, whole, base)
    config.training.checkpoint_every = 1
    save_step = run_module.Checkpoints.save_step

    def save_and_die(self, step, state):
        save_step(self, step, state)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.Checkpoints, "save_step", save_and_die)
        run(config, parts, base)
    train(config, parts)
    for mine, other in zip(read_run(parts).steps, read_run(whole).steps, strict=True):
        assert {**mine, "step_time": 0} == {**other, "step_time": 0}


@pytest.mark.parametrize(
    "reference", ["previous", pytest.param("base", marks=pytest.mark.long), "ema"]
)
def test_the_reference_of_each_task(base, tmp_path, monkeypatch, reference):
    """The right frozen policy at each boundary, also where a run is resumed."""
    config = tiny("grpo", **{"kl.beta": 0.1, "kl.reference": reference, "kl.ema_decay": 0.75})
    config.sequence, config.training.steps = ("sum", "jigsaw", "walk"), 1
    seen, learn_task = [], run_module.learn_task

    def spy(learner, stage, state, **kwargs):
        given = jax.device_get((state.train.params, stage.reference))
        if len(seen) == 2 and not killed:
            killed.append(True)
            raise KeyboardInterrupt
        found = learn_task(learner, stage, state, **kwargs)
        seen.append(given)
        return found

    killed = []
    monkeypatch.setattr(run_module, "learn_task", spy)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, base)
    train(config, tmp_path)
    (start, first), (second_start, second), (third_start, third) = seen

    def mix(a, b):
        return jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, a, b)

    expected = {
        "previous": (start, second_start, third_start),
        "base": (start, start, start),
        "ema": (start, mix(start, second_start), mix(mix(start, second_start), third_start)),
    }[reference]
    for found, wanted in zip((first, second, third), expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted)
    assert any(
        (a != b).any() for a, b in zip(*map(jax.tree.leaves, (start, third_start)), strict=True)
    )
    # KL is measured against it: exactly 0 only where the policy starts there
    kls = [row["kl"] for row in read_run(tmp_path).steps]
    assert kls[0] == 0 and (kls[1] == 0) == (reference == "previous")


def test_only_the_policies_that_are_read_are_kept():
    start, learned = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}

    def after(reference):
        return Anchors.of_base(start, reference).after(learned, ema_decay=0.75)

    for reference in (None, "previous"):
        assert after(reference).reference(reference) is after(reference).previous is learned
        assert not after(reference).kept
    assert after("base").kept == {"base": start} and after("base").previous is learned
    assert (after("ema").reference("ema")["w"] == 0.25).all()
    # before the first task it is one policy, and stays one when that is copied

    def held(params):
        return jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)

    anchors = Anchors.of_base(start, "base").frozen(held)
    assert anchors.reference("base") is anchors.previous is not start
    # after a resume it is another, and held as it was before
    resumed = after("base").frozen(held)
    assert resumed.previous["w"].dtype == resumed.kept["base"]["w"].dtype == jnp.bfloat16


def short_is_right(records, texts, **others):
    scores = score_texts(records, texts)
    right = np.array([len(text.split()) % 2 == 0 for text in texts], float)
    return dataclasses.replace(scores, accuracy=right)


def test_collected_rollouts_are_the_right_ones_and_are_learned(base, tmp_path, monkeypatch):
    run_dir, out = tmp_path / "rft", tmp_path / "rollouts"
    config = tiny("grpo", **{"training.collect": 2, "kl.beta": 0.0})
    with monkeypatch.context() as patch:  # the tiny model answers nothing rightly
        patch.setattr(run_module, "judge", short_is_right)
        run(config, run_dir, base)
    tables = {p.stem: pq.read_table(p).to_pylist() for p in run_dir.glob("rollouts/*.parquet")}
    assert tables.keys() == {"sum", "jigsaw"}
    for task, rows in tables.items():
        assert 0 < len(rows) < 128
        assert all(row["task"] == task and row["record_id"].startswith(task) for row in rows)
        assert all(len(row["completion"].split()) % 2 == 0 for row in rows)
        kept = [(row["record_id"], row["completion"]) for row in rows]
        assert len(set(kept)) == len(kept)
    # the command, judged by the real verifiers: nothing to keep
    with pytest.raises(ValueError, match=r"names 'tests.engine:brief', .*--config"):
        collect(str(run_dir), out)
    found = collect(str(run_dir), out, config, samples=1, limit=16)
    assert found == {"sum": (0, 16), "jigsaw": (0, 16)}
    rft = tiny("rft_sft", **{"demonstrations.rollouts": str(out / "*.parquet")})
    with pytest.raises(ValueError, match="no training record has a demonstration"):
        train(rft, tmp_path)
    rft.model.path = base
    rft.demonstrations.rollouts = str(run_dir / "rollouts" / "*.parquet")
    assert train(rft, tmp_path).status == "done"
    learned = read_samples(tmp_path).to_pylist()
    by_id = {}
    for row in (row for rows in tables.values() for row in rows):
        by_id.setdefault(row["record_id"], row["completion"])
    assert all(row["completion"].strip() == by_id[row["record_id"]].strip() for row in learned)
