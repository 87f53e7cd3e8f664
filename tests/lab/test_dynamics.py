"""`rdbcl dynamics`: against a kernel made in full, against real steps, and end to end."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax.data.records import Record
from rdbcl_jax.lab.dynamics import measure
from rdbcl_jax.lab.dynamics.measure import Texts, make_texts, measure_influence, perplexity
from rdbcl_jax.lab.dynamics.report import run_dynamics
from rdbcl_jax.lab.suites import forks
from rdbcl_jax.models import partition
from rdbcl_jax.rewards.scoring import score as score_texts
from rdbcl_jax.snapshots import Snapshot
from rdbcl_jax.toy import digits_suite
from rdbcl_jax.training.logprobs import response_logprobs
from rdbcl_jax.training.supervised import supervised_batch
from tests import engine
from tests.test_cli import rdbcl

CHUNK = 1024


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    policy, params = engine.load(engine.write_random_model(tmp_path_factory.mktemp("model")))
    return Snapshot("random", policy, params)


@pytest.fixture(scope="module")
def records():
    return digits_suite.make_records("sum", "train", 3, 0)


@pytest.fixture(scope="module")
def sets(config, records, student):
    others = digits_suite.make_records("jigsaw", "validation", 5, 0)
    return [
        make_texts("answer", "answer", records, config, student),
        make_texts("trace", "trace", others, config, student),
    ]


def loss_and_logits(student, texts, index):
    """(logits of one text [T, V] as a function of flat parameters, those, its tokens)."""
    policy = student.policy
    batch = policy.encoder.encode_supervised([texts.records[index]], [texts.responses[index]])
    flat, unravel = jax.flatten_util.ravel_pytree(student.learned)
    length = int(batch.mask.sum())

    def logits(flat):
        params = policy.whole(unravel(flat))
        hidden = policy.model.response_hidden(params, *batch)[0, 0, :length]
        return hidden @ policy.model.lm_head(params)

    return logits, flat, batch.tokens[0, 0, :length]


def test_equals_the_explicit_kernel(config, student, records, sets):
    """Δ log π = −A K G with K = J(x_v) J(x_u)ᵀ written out."""
    train, probe = sets[0], make_texts("answer", "other", records[::-1], config, student)
    found = measure_influence(config, student, train, [probe])[0]
    assert found.magnitude.shape == (3, 3)
    logits_u, flat, tokens_u = loss_and_logits(student, train, 1)
    logits_v, _, tokens_v = loss_and_logits(student, probe, 2)
    jacobian_u, jacobian_v = (
        np.asarray(jax.jit(jax.jacrev(f))(flat)) for f in (logits_u, logits_v)
    )
    kernel = np.einsum("avp,bwp->avbw", jacobian_v, jacobian_u)
    g = np.asarray(jax.nn.softmax(logits_u(flat)))
    vocabulary = g.shape[1]
    g = g - np.eye(vocabulary)[tokens_u]
    pi = np.asarray(jax.nn.softmax(logits_v(flat)))
    a = np.eye(vocabulary) - np.ones((vocabulary, 1)) * pi[:, None]  # [T, V, V]
    delta = -np.einsum("tij,tj->ti", a, np.einsum("avbw,bw->av", kernel, g))
    squared, length = np.square(delta).sum(), len(tokens_v)
    magnitude = squared / np.square(a).sum() / np.square(g).sum()
    np.testing.assert_allclose(found.magnitude[1, 2], magnitude, rtol=2e-3)
    np.testing.assert_allclose(found.change[1, 2], squared / length, rtol=2e-3)
    gain = delta[np.arange(length), tokens_v].sum() / length
    np.testing.assert_allclose(found.gain[1, 2], gain, rtol=2e-3)


def test_a_real_step_agrees_to_first_order(config, student, sets):
    """The error is the second order's: it halves with the step."""
    lengths = (5e-4, 2.5e-4, 1.25e-4)
    errors = [measure.step_deviation(config, student, *sets, length=x) for x in lengths]
    assert errors[2] < 0.01
    ratios = [errors[0] / errors[1], errors[1] / errors[2]]
    assert ratios == pytest.approx([2, 2], rel=0.1)


def test_a_step_on_a_text_makes_it_likelier(config, student, sets):
    for texts in sets:
        found = measure_influence(config, student, texts, [texts])[0]
        own = np.diagonal(found.gain)
        assert (own > 0).all()
        # and by exactly the squared norm of its gradient
        one = next(measure._singles(student, texts))
        g = measure._gradient(
            student.policy.model, student.learned, student.policy.frozen, one, CHUNK
        )
        norm = sum(float(jnp.square(x).sum()) for x in jax.tree.leaves(g))
        assert own[0] == pytest.approx(norm / one.mask.sum(), rel=1e-3)


def test_perplexity_is_that_of_all_tokens(config, student, sets):
    texts = sets[1]
    total = count = 0.0
    for pair in zip(texts.records, texts.responses, strict=True):
        batch = supervised_batch(student.policy, [pair])
        logps = response_logprobs(
            student.policy.model, student.params, batch.prompts, batch.tokens, batch.mask,
            temperature=1.0, chunk_size=7,
        )  # fmt: skip
        total, count = total - float(logps[batch.mask].sum()), count + batch.mask.sum()
    expected = np.exp(total / count)
    assert perplexity(config, student, texts) == pytest.approx(expected, rel=1e-4)
    zero = Snapshot("uniform", student.policy, jax.tree.map(jnp.zeros_like, student.learned))
    vocabulary = student.policy.model.config.text.vocab_size
    assert perplexity(config, zero, texts) == pytest.approx(vocabulary, rel=1e-4)


def test_kinds_of_texts(config, student, records):
    answers = make_texts("answer", "a", records, config, student).responses
    assert answers == [f"<answer> {r.answer} </answer>" for r in records]
    traces = make_texts("trace", "t", records, config, student).responses
    assert score_texts(records, traces).accuracy.all()
    others = forks.make_records(next(iter(forks.TASKS)), "train", 3, 0)
    traces = make_texts("trace", "t", others, config, student).responses
    assert score_texts(others, traces).accuracy.all()
    given = Record("x", "other", "?", (), "1", "exact", {"response": "my own words"})
    assert make_texts("trace", "t", [given], config, student).responses == ["my own words"]
    with pytest.raises(ValueError, match="record 'y' has no written solution"):
        make_texts("trace", "t", [Record("y", "other", "?", (), "1", "exact", {})], config, student)
    with pytest.raises(ValueError, match="needs --teacher"):
        make_texts("rollout", "r", records, config, student)
    own = make_texts("own", "o", records, config, student)
    said = measure.sample_texts(config, student, records)  # those that end by themselves
    assert len(said) == 3 and 0 < sum(map(len, said)) < 3 * config.rollout.samples
    assert own.responses == [group[0] for group in said if group]
    with pytest.raises(ValueError, match="solves none of its 3 records"):
        make_texts("rollout", "r", records, config, student, student)


def test_rollouts_are_the_teachers_right_samples(config, student, records, monkeypatch):
    """No tiny model is right in seconds, so what it says is given here."""
    right, wrong = digits_suite.make_trace(records[1]), "<think> sum </think> <answer> x </answer>"
    said = [[wrong, wrong], [wrong, right], []]
    monkeypatch.setattr(measure, "sample_texts", lambda *args: said)
    texts = make_texts("rollout", "r", records, config, student, student)
    assert texts == Texts("r", [records[1]], [right])
    texts = make_texts("own", "o", records, config, student)
    assert texts == Texts("o", records[:2], [wrong, wrong])


@pytest.mark.slow
def test_command(workdir, tmp_path):
    flags = [
        "--config=tests/small_config.py", f"--checkpoint={workdir}@0", "--limit=2",
        "--train=answer:digits:sum", "--train=trace:digits:jigsaw",
        "--probe=trace:digits:sum", "--probe=answer:digits:walk", f"--out={tmp_path}",
    ]  # fmt: skip
    done = rdbcl("dynamics", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "dynamics.json").read_text())
    assert [row["name"] for row in result["train"]] == ["answer sum", "trace jigsaw"]
    for row in result["train"]:
        assert row["perplexity"] > 1 and row["step_deviation"] < 0.05
        assert set(row["influence"]) == {"trace sum", "answer walk"}
        assert all(f["magnitude"]["mean"] > 0 for f in row["influence"].values())
    assert "| answer sum |" in (tmp_path / "dynamics.md").read_text()
    assert (tmp_path / "dynamics.png").stat().st_size > 10_000


def test_wrong_arguments(config, tmp_path):
    def run(train="answer:digits:sum", probes=("own:digits:sum",)):
        run_dynamics(config, str(tmp_path), [train], probes, tmp_path / "out")

    with pytest.raises(ValueError, match="expected KIND:SOURCE"):
        run("sum")
    with pytest.raises(ValueError, match="its kind is 'gold'"):
        run("gold:digits:sum")
    with pytest.raises(ValueError, match="at least one --train"):
        run(probes=())
    with pytest.raises(FileNotFoundError, match="neither a checkpoint"):
        run()


@pytest.mark.long  # a model's gradients are the same however layers are recomputed: its contract
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_what_the_backward_pass_recomputes_changes_nothing(config, student, sets, remat):
    model = dataclasses.replace(student.policy.model, remat=remat)
    other = Snapshot("remat", dataclasses.replace(student.policy, model=model), student.learned)
    ours, theirs = (measure_influence(config, s, sets[0], sets[1:])[0] for s in (student, other))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_only_what_learns_takes_the_step(config, student, sets):
    """As with a frozen vision tower or adapters: what is held back neither moves nor is moved."""
    for pattern in (student.policy.model.language_pattern, r"q_proj/kernel$"):
        learned, frozen = partition.split(student.params, pattern)
        policy = dataclasses.replace(student.policy, frozen=frozen)
        part = Snapshot("part", policy, learned)
        assert measure.step_deviation(config, part, *sets, length=3e-4) < 0.03
        magnitude = measure_influence(config, part, sets[0], sets[1:])[0].change
        whole = measure_influence(config, student, sets[0], sets[1:])[0].change
        assert (magnitude != whole).all()
