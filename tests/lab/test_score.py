"""`rdbcl score` end to end on a tiny model, and each of its parts where the truth is known."""

import json
import pathlib

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.portability import kl_coefficients
from rdbcl_jax.lab.portability.measure import (
    KINDS,
    LEVELS,
    Source,
    continue_from,
    measure,
    reasoning_of,
)
from rdbcl_jax.lab.portability.report import read_sources, run_score, summarise, told_apart
from rdbcl_jax.policy import load_policy
from rdbcl_jax.rewards.scoring import RewardConfig
from rdbcl_jax.rewards.scoring import score as score_texts
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.snapshots import load_snapshots
from rdbcl_jax.toy import digits_suite
from tests import engine
from tests.test_cli import rdbcl

pytestmark = pytest.mark.slow

RP = [f"rp/{kind}/{level}" for kind in KINDS for level in LEVELS]


@pytest.fixture(scope="module")
def pair(config, workdir):
    return load_snapshots(config, (f"{workdir}@1", f"{workdir}@0"), make_mesh())


@pytest.fixture(scope="module")
def source():
    return Source(
        "sum", digits_suite.make_records("sum", "test", 12, 0), False
    )  # not a whole batch


@pytest.fixture(scope="module")
def measured(config, pair, source):
    return measure(config, *pair, source, jax.random.key(0))


def test_columns_are_what_they_say(config, source, measured):
    for samples in measured.values():
        assert {v.shape for v in samples.columns.values()} == {(12, 4)}
        texts = [text for group in samples.texts for text in group]
        records = [r for r in source.records for _ in range(4)]
        scores = score_texts(records, texts, RewardConfig(**config.rewards.to_dict()))
        np.testing.assert_array_equal(samples.columns["reward"].reshape(-1), scores.total)
        np.testing.assert_array_equal(samples.columns["accuracy"].reshape(-1), scores.accuracy)
        has_reasoning = np.array([["<think>" in t for t in group] for group in samples.texts])
        assert has_reasoning.mean() > 0.3
        found = np.isfinite(samples.columns["rp/ratio/reasoning"])
        assert (found <= has_reasoning).all() and found.mean() > 0.3
        assert (samples.columns["kl"] > 0).all()
        for name in RP:
            rp = np.nan_to_num(samples.columns[name], nan=1.0)
            beta = kl_coefficients(rp, beta_min=0.0, beta_max=0.08)
            np.testing.assert_allclose(samples.columns[name.replace("rp", "beta", 1)], beta, 1e-5)
    # samples are each policy's own: on average likelier under the policy that drew them
    ratio = {
        name: np.nanmean(np.log(s.columns["rp/ratio/response"])) for name, s in measured.items()
    }
    assert ratio["trained"] < 0 < ratio["reference"]


def test_a_policy_against_itself(config, pair, source):
    samples = measure(config, pair[1], pair[1], source, jax.random.key(0))
    for drawn in samples.values():
        assert (drawn.columns["kl"] == 0).all()
        ratio = drawn.columns["rp/ratio/reasoning"]
        assert (ratio[np.isfinite(ratio)] == 1).all() and np.isfinite(ratio).any()


def test_continuations_are_the_trained_policys_own(config, pair, source, measured):
    reference = measured["reference"]
    for texts, continued in zip(reference.texts, reference.continuations, strict=True):
        assert all(c.startswith(reasoning_of(t)) for t, c in zip(texts, continued, strict=True))
    records = [r for r in source.records for _ in range(4)]
    texts = [text for group in reference.continuations for text in group]
    right = score_texts(records, texts).accuracy.reshape(12, 4)
    np.testing.assert_array_equal(reference.columns["ported"], right)


def test_continuing_its_own_beginning_a_greedy_policy_says_the_same(config, pair, source):
    config = config.changed({"rollout.top_k": 1})
    trained = pair[0]
    whole = continue_from(config, trained, source.records, [""] * 12, jax.random.key(0))
    begun = [" ".join(text.split()[:4]) for text in whole]
    again = continue_from(config, trained, source.records, begun, jax.random.key(1))
    for text, other in zip(whole, again, strict=True):  # which may now be four tokens longer
        assert other.replace(" ", "").startswith(text.replace(" ", ""))


@pytest.mark.parametrize(
    "text,prefix",
    [
        ("<think> a </think> <answer> 1 </answer>", "<think> a </think>"),
        ("<think> a <answer> 1 </answer>", "<think> a "),
        ("<think> a b", "<think> a b"),
        ("</think> <think> a </think> b", "</think> <think> a </think>"),
        ("<answer> 1 </answer>", ""),
        ("", ""),
    ],
)
def test_reasoning_ends_where_the_spans_say(text, prefix):
    assert reasoning_of(text) == prefix


def test_a_signal_that_knows_the_outcome_is_reliable_and_one_that_does_not_is_not(measured, source):
    """The whole way from columns to rows, with signals put in place of RP."""
    rng = np.random.default_rng(0)
    shape = (300, 4)
    outcome = rng.integers(0, 2, shape).astype(float)
    known, noise = outcome + rng.normal(size=shape), rng.normal(size=shape)
    columns = dict.fromkeys(RP, noise) | {"ported": outcome, "accuracy": outcome}
    columns["rp/confidence/reasoning"] = known
    one = type(measured["trained"])([], columns)
    rows = summarise([(source, {"trained": one, "reference": one})])
    assert {row.scope for row in rows} == {"in", "source:sum"}
    for row in rows:
        if (row.kind, row.level) == ("confidence", "reasoning"):
            assert row.auroc.low > 0.55 and row.spearman.low > 0.1
        else:
            assert row.auroc.low < 0.52 and row.auroc.high > 0.48
        assert row.prompts == 300


def test_command(workdir, tmp_path):
    out = tmp_path / "out"
    flags = {
        "config": "tests/small_config.py",
        "config.rollout.samples": 2,
        "checkpoint": f"{workdir}@1",
        "reference": f"{workdir}@0",
        "records": "digits:sum",
        "ood": "digits:jigsaw",
        "limit": 8,
        "out": out,
    }
    done = rdbcl("score", *(f"--{name}={value}" for name, value in flags.items()))
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert [s["out_of_distribution"] for s in summary["sources"]] == [False, True]
    assert {row["scope"] for row in summary["signals"]} == {
        "in", "out", "source:sum", "source:jigsaw"
    }  # fmt: skip
    table = pq.read_table(out / "samples.parquet")
    assert len(table) == 2 * 2 * 8 * 2  # sources, samplers, records, samples
    assert {*RP, "kl", "accuracy", "ported", "completion", "continuation"} <= {*table.column_names}
    assert table["ported"].null_count == len(table) // 2
    text = (out / "summary.md").read_text()
    assert "nan" not in text and "| reference | confidence | reasoning |" in text
    assert (out / "score.png").stat().st_size > 10_000


def test_what_is_wrong_is_found_before_anything_is_loaded(config, workdir, tmp_path):
    def score(checkpoint=f"{workdir}@1", records=("digits:sum",), ood=()):
        run_score(config, checkpoint, f"{workdir}@0", records, ood, tmp_path / "out")

    with pytest.raises(FileNotFoundError, match=r"found tasks \[0, 1\]"):
        score(f"{workdir}@7")
    with pytest.raises(FileNotFoundError, match="neither a checkpoint directory"):
        score(str(tmp_path))
    with pytest.raises(ValueError, match="give --records=SOURCE"):
        score(records=())
    with pytest.raises(ValueError, match="named twice"):
        score(ood=("digits:sum",))
    with pytest.raises(ValueError, match="split is 'val', expected one of train, validation, test"):
        read_sources(config, ["digits:sum"], "val")
    assert not (tmp_path / "out").exists()


def test_files_of_one_name_are_told_apart(config, tmp_path):
    names = [f"{tmp_path}/{folder}/test.jsonl" for folder in ("geo", "charts")]
    for name in names:
        pathlib.Path(name).parent.mkdir()
        rows = [{"prompt": f"{name} {i}", "answer": "1"} for i in range(3)]
        pathlib.Path(name).write_text("\n".join(map(json.dumps, rows)))
    # a task of the config by its name alone, too
    found = read_sources(config, [*names, "sum"], "test", limit=2)
    assert [source.name for source in told_apart(found, [*names, "sum"])] == [*names, "sum"]
    assert [len(source.records) for source in found] == [2, 2, 2]
    assert found[0].records.facts.needs["images_per_prompt"] == [0]  # also of some of them


def test_snapshots(config, workdir):
    mesh = make_mesh()
    last, first, plain = load_snapshots(
        config, (str(workdir), f"{workdir}@0", str(workdir / "base")), mesh
    )
    assert all(_equal(first.params, plain.params))
    assert not any(_equal(last.params, first.params))
    assert last.policy is first.policy  # read once


def test_a_base_and_what_adapters_made_of_it_in_either_order(tmp_path):
    settings = engine.small_config()
    settings.model.path = str(engine.write_random_model(tmp_path / "model"))
    settings.model.lora.rank = 2
    config, mesh = RunConfig.of(settings), make_mesh()
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save_task(1, load_policy(config, mesh)[1])
    names = settings.model.path, f"{tmp_path / 'run'}@1"
    for order in (names, names[::-1]):
        found = load_snapshots(config, order, mesh)
        adapted = {snapshot.name: snapshot.policy.model.lora is not None for snapshot in found}
        assert adapted == {names[0]: False, names[1]: True}


def _equal(a, b):
    leaves = zip(*map(jax.tree.leaves, (a, b)), strict=True)
    return [(np.asarray(x) == np.asarray(y)).all() for x, y in leaves]


def test_tokenizers_must_agree(config, workdir, tmp_path):
    from rdbcl_jax.models import save_pretrained
    from rdbcl_jax.models.qwen_vl.config import read_config
    from rdbcl_jax.models.qwen_vl.model import QwenVL
    from rdbcl_jax.toy.tiny import write_tiny_model

    write_tiny_model(tmp_path, engine.SIZE, extra_words=("other",))
    model = QwenVL(read_config(tmp_path))
    save_pretrained(tmp_path, model, model.init(jax.random.key(0)), like=tmp_path)
    with pytest.raises(ValueError, match="different tokenizers"):
        load_snapshots(config, (str(workdir), str(tmp_path)), make_mesh())


def test_a_task_of_the_config_is_a_source(config):
    config = config.changed({"tasks.mine": {"test": "digits:walk"}})
    (source,) = read_sources(config, ["mine"], "test", limit=3)
    assert source.name == "mine" and [r.task for r in source.records] == ["walk"] * 3


def test_the_same_key_gives_the_same_samples_and_numbers(config, pair, source, measured):
    again = measure(config, *pair, source, jax.random.key(0))
    other = measure(config, *pair, source, jax.random.key(1))
    for sampler, samples in measured.items():
        assert again[sampler].texts == samples.texts != other[sampler].texts
        assert again[sampler].continuations == samples.continuations
        for name, values in samples.columns.items():
            np.testing.assert_array_equal(again[sampler].columns[name], values)
