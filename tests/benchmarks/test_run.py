"""The runner from end to end, in seconds, with the engine's own programs only."""

import json

import jax
import pytest

from rdbcl_jax.sharding import put_batch
from tests.benchmarks import ours, run, tables, workload


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmarks")
    run.main(["--suite=limit", f"--out={out}", "--small", "--repeats=2"])
    return json.loads((out / "limit.json").read_text()), (out / "limit.md").read_text()


def test_every_repeat_is_kept_and_phases_fit_into_the_step(written):
    (case,) = written[0]["samples"]
    assert len(case["steps"]["ours"]) == len(case["steps"]["probe"]) == 2
    for step in case["steps"]["ours"]:
        phases = sum(step[name] for name in ("host", "generate", "reference", "update"))
        assert 0 < phases == pytest.approx(step["total"])
        assert step["prefill"] > 0


def test_shares_are_the_ratio_of_what_was_achieved_and_what_was_probed(written):
    content = written[0]
    rows = content["tables"]["FLOP/s over the measured peak of matrix products"]
    assert [row["phase"] for row in rows] == ["generate", "reference", "update"]
    (case,) = content["samples"]
    shares = [
        rows[2]["GFLOP"] * 1e9 / ours["update"] / probe["flops"]
        for ours, probe in zip(case["steps"]["ours"], case["steps"]["probe"], strict=True)
    ]
    assert rows[2]["share"]["min"] == pytest.approx(min(shares))
    assert rows[2]["share"]["max"] == pytest.approx(max(shares))


def test_the_table_names_machine_versions_and_threads(written):
    content, markdown = written
    assert content["machine"]["cpu"] in markdown
    assert f"jax {content['programs']['ours']['versions']['jax']}" in markdown
    assert f"{content['programs']['probe']['threads']} threads" in markdown
    header = next(line for line in markdown.splitlines() if line.startswith("| size | phase"))
    body = [line for line in markdown.splitlines() if line.startswith("| small |")]
    assert {line.count("|") for line in body[:3]} == {header.count("|")}


@pytest.mark.long
def test_long_tailed_lengths_are_what_the_table_says(tmp_path):
    run.main(["--suite=tail", f"--out={tmp_path}", "--small", "--repeats=2"])
    (case,) = json.loads((tmp_path / "tail.json").read_text())["samples"]
    w = case["workload"]
    rows = w["prompts"] * w["samples"]
    for even, long_tailed in zip(case["steps"]["even"], case["steps"]["tail"], strict=True):
        assert even["tokens"] == rows * w["response_length"]
        assert rows <= long_tailed["tokens"] < rows * long_tailed["longest"]


@pytest.mark.long  # tests/models/test_contract.py holds both parts to it
def test_copies_of_the_prompts_are_the_same_update():
    """The two forms that `prefix` compares: on the same responses, the same gradients."""
    norms = {}
    shared = ours.Program(workload.SMALL)
    shared.step()
    rollouts = shared._sample(shared.sampling)
    for naive in (False, True):
        program = ours.Program(workload.SMALL, naive=naive)
        program.prompts = put_batch(program.source.encode(), program.mesh)
        shape = program.run.prompts, program.run.samples
        same = jax.tree.map(lambda a, shape=shape: a.reshape(*shape, *a.shape[2:]), rollouts)
        program._update(same, program._score(same))
        norms[naive] = float(program.metrics["grad_norm"])
    assert norms[True] == pytest.approx(norms[False], rel=1e-4) and norms[True] > 0


@pytest.mark.long
@pytest.mark.parametrize("suite", ["peers", "prefix", "scaling", "drafts"])
def test_every_suite_runs(suite, tmp_path):
    flags = ["--small", "--repeats=1", "--programs=ours", f"--out={tmp_path}"]
    run.main([f"--suite={suite}", *flags])
    content = json.loads((tmp_path / f"{suite}.json").read_text())
    rows = [row for rows in content["tables"].values() for row in rows]
    assert rows
    if suite == "peers":
        assert [row["size"] for row in rows] == ["small", "small images"]
        assert rows[0]["total"]["median"] > rows[0]["update"]["median"] > 0
    if suite == "prefix":
        assert rows[0]["tokens"] == 0.75  # (8 + 4·16) / (4·(8 + 16))
        assert rows[0]["update"]["median"] > 0
    if suite == "drafts":
        for row, k in zip(rows, (4, 8), strict=True):
            gain = k * row["a token, ms"]["median"] / row["k tokens, ms"]["median"]
            assert row["generation faster by"]["median"] == pytest.approx(gain, rel=1e-3)
    if suite == "scaling":
        assert rows[2]["of"] == "update" and rows[2]["predicted"] == 2


def test_a_worker_that_fails_says_why(tmp_path):
    from tests.benchmarks.workers import Worker, WorkerError

    worker = Worker("ours", tmp_path / "log")
    with pytest.raises(WorkerError, match="KeyError: 'workload'"):
        worker.ask(nothing=1)
    worker.close()


def test_ratios_are_taken_round_by_round():
    assert tables.ratios([2.0, 9.0], [1.0, 3.0]) == {"median": 2.5, "min": 2, "max": 3, "n": 2}
    assert tables.show({"median": 0.12345, "min": 0.1, "max": 1234.5}) == "0.123 (0.1–1,234)"
