import re

import numpy as np
import pytest

from rdbcl_jax.reporting.compare import compare_runs
from rdbcl_jax.reporting.groups import group_runs, paired
from rdbcl_jax.reporting.numbers import percent, spread
from rdbcl_jax.reporting.run_files import Run, read_run
from rdbcl_jax.reporting.text_tables import latex_escape
from rdbcl_jax.results import RunResults, SplitResults, write_results


def results(method, seed, last, *, done=True, tasks=("a", "b"), **config):
    """Of a run of two tasks; `last` is its one metric."""
    rows = [[0.25, 0.25], [0.5, 0.25], [last, last]] if done else [[0.25, 0.25], [0.5, 0.25]]
    split = SplitResults(rows, rows, [8, 8], {"last": last} if done else {})
    status = "done" if done else "running"
    return RunResults(method, seed, status, list(tasks), splits={"test": split}, config=config)


@pytest.fixture
def write(tmp_path):
    """write(name, results) → a workdir that has them."""

    def write(name, found):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name, found)
        return tmp_path / name

    return write


@pytest.fixture
def nine(write):
    """Three seeds of GRPO and of two RDB-CL settings; one of the nine is partial."""
    paths = []
    for seed in range(3):
        paths.append(write(f"grpo{seed}", results("grpo", seed, 0.5 + 0.1 * seed)))
        for beta in (0.1, 0.2):
            done = (seed, beta) != (2, 0.2)
            config = {"kl": {"beta_max": beta, "fresh": 1}, "data_seed": seed}
            found = results("rdbcl", seed, 0.6 + beta * seed, done=done, **config)
            paths.append(write(f"rdbcl{beta}-{seed}", found))
    return paths


def test_groups_by_method_and_configuration(nine):
    groups = group_runs([read_run(path) for path in nine])
    assert [g.label for g in groups] == [
        "GRPO",
        "RDB-CL (beta_max=0.1)",
        "RDB-CL (beta_max=0.2)",
    ]
    assert [len(g.complete) for g in groups] == [3, 3, 2]


def test_numbers_of_the_tables(nine, tmp_path):
    page = compare_runs(nine, tmp_path / "out")
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "| GRPO | 3 | 60.0 ± 10.0 |" in markdown
    assert "60.0 ± 10.0" in page.read_text()
    assert r"60.0 $\pm$ 10.0" in (tmp_path / "out" / "compare.tex").read_text()
    assert "| RDB-CL (beta_max=0.1) − GRPO | 3 | +10.0 ± 0.0 |" in markdown
    assert "| RDB-CL (beta_max=0.2) − GRPO | 2 | +15.0 ± 7.1 |" in markdown


def test_partial_runs_are_marked_and_not_averaged(nine, tmp_path):
    text = compare_runs(nine, tmp_path / "out").read_text()
    assert "partial: 1 of 2 tasks" in text
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "| RDB-CL (beta_max=0.2) | 2 (+1 partial) | 70.0 ± 14.1 |" in markdown


def test_real_runs(runs, tmp_path):
    paths = [runs / name for name in ("rdbcl-0", "grpo-0", "killed", "zero-shot")]
    text = compare_runs(paths, tmp_path).read_text()
    assert "http:" not in text and "https:" not in text and "<script" not in text
    assert "4 runs, 3 configurations" in text and "partial: 1 of 2 tasks" in text
    metrics = read_run(paths[1]).results.metrics("test")
    assert len(metrics) == 12
    cells = " | ".join(percent(v, signed=name in SIGNED) for name, v in metrics.items())
    assert f"| GRPO | 1 | {cells} |" in (tmp_path / "compare.md").read_text()
    assert "Mean accuracy over all tasks after the last one." in text


SIGNED = ("bwt", "bwt_over_t", "fwt_zeroshot", "held_out_change")


def test_what_differs(nine, tmp_path):
    text = compare_runs(nine, tmp_path / "out").read_text()
    assert "<code>kl.beta_max</code>" in text and "data_seed" not in text


def test_baseline(nine, tmp_path):
    text = compare_runs(nine, tmp_path, baseline="RDB-CL (beta_max=0.2)").read_text()
    assert "Paired differences from RDB-CL (beta_max=0.2)" in text
    with pytest.raises(ValueError, match="no group is called 'sft'"):
        compare_runs(nine, tmp_path, baseline="sft")


def test_paired_needs_common_seeds(tmp_path):
    found = [results("grpo", 1, 0.5), results("rdbcl", 2, 0.5)]
    ours, theirs = group_runs([Run(tmp_path, one, [], None, []) for one in found])
    assert len(paired(ours, theirs, "last", "test")) == 0


def test_one_run_only_partial_runs_and_other_tasks(write, tmp_path):
    one = write("one", results("rdbcl", 1, 0.5))
    partial = write("two", results("sft", 0, 0.5, done=False))
    other = write("three", results("rdbcl", 0, 0.5, tasks=("x", "y")))
    for chosen in ([one], [partial], [one, partial], [one, other, partial]):
        text = compare_runs(chosen, tmp_path / "out").read_text()
    assert "RDB-CL (tasks=x &gt; y)" in text and "Accuracy on x → y" in text


def test_many_groups(write, tmp_path):
    paths = [write(f"m{i}", results(f"m_{i}&", 0, 0.5)) for i in range(9)]
    text = compare_runs(paths, tmp_path / "out").read_text()
    assert "M_8&amp;" in text and r"M\_8\&" in (tmp_path / "out" / "compare.tex").read_text()
    assert re.search(r"<th scope=\"row\">M_8&amp;</th><td>1</td><td>50.0</td>", text)


def test_refuses_no_run_and_the_same_run_twice(write, tmp_path):
    path = write("one", results("rdbcl", 1, 0.5))
    for workdirs in ([], [path, path]):
        with pytest.raises(ValueError, match="workdir"):
            compare_runs(workdirs, tmp_path / "out")


def test_spread():
    assert spread(np.array([])) == "–"
    assert spread(np.array([-0.05]), signed=True) == "−5.0"
    assert spread(np.array([0.5, 0.6])) == "55.0 ± 7.1"


@pytest.mark.parametrize(
    "value,signed,text",
    [
        (-0.0001, False, "0.0"),  # never −0.0
        (-0.0001, True, "+0.0"),
        (0.7134, False, "71.3"),
        (0.05, True, "+5.0"),
        (float("nan"), True, "–"),
        (None, False, "–"),
    ],
)
def test_percent(value, signed, text):
    assert percent(value, signed=signed) == text


def test_latex_escape():
    assert latex_escape(r"a_b & 5% #1 {x} ~^\ ±−") == (
        r"a\_b \& 5\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} $\pm$$-$"
    )
