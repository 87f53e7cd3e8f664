import re

import numpy as np
import pytest

from rdbcl_jax.reporting.compare import compare_runs
from rdbcl_jax.reporting.groups import group_runs, paired
from rdbcl_jax.reporting.numbers import spread
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.reporting.text_tables import latex_escape

SMALL = {"steps": 1, "samples": 2, "examples": 0}


@pytest.fixture
def runs(make_workdir):
    """Three seeds of GRPO and of two RDB-CL settings; one of the nine is partial."""
    paths = []
    for seed in range(3):
        paths.append(make_workdir(f"grpo{seed}", method="grpo", seed=seed, **SMALL))
        for beta in (0.1, 0.2):
            rows = 3 if (seed, beta) == (2, 0.2) else 6
            config = {"kl": {"beta_max": beta, "fresh": 1}, "data_seed": seed}
            name = f"rdbcl{beta}-{seed}"
            paths.append(make_workdir(name, seed=seed, rows=rows, config=config, **SMALL))
    return paths


def last(path):
    return read_run(path).results.metrics("test")["last"]


def test_groups_by_method_and_configuration(runs):
    groups = group_runs([read_run(path) for path in runs])
    assert [g.label for g in groups] == [
        "GRPO",
        "RDB-CL (beta_max=0.1)",
        "RDB-CL (beta_max=0.2)",
    ]
    assert [len(g.complete) for g in groups] == [3, 3, 2]


def test_numbers_of_the_tables(runs, tmp_path):
    page = compare_runs(runs, tmp_path / "out")
    values = 100 * np.array([last(p) for p in runs if p.name.startswith("grpo")])
    cell = f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert re.search(r"\| GRPO \| 3 \| (.*?) \|", markdown)[1] == cell
    assert cell in page.read_text()
    assert cell.replace("±", r"$\pm$") in (tmp_path / "out" / "compare.tex").read_text()
    by_name = {p.name: last(p) for p in runs}
    pairs = [by_name[f"rdbcl0.1-{s}"] - by_name[f"grpo{s}"] for s in range(3)]
    expected = f"{100 * np.mean(pairs):+.1f} ± {100 * np.std(pairs, ddof=1):.1f}".replace("-", "−")
    assert f"| RDB-CL (beta_max=0.1) − GRPO | 3 | {expected} |" in markdown


def test_partial_runs_are_marked_and_not_averaged(runs, tmp_path):
    text = compare_runs(runs, tmp_path / "out").read_text()
    assert "partial: 2 of 5 tasks" in text
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "| RDB-CL (beta_max=0.2) | 2 (+1 partial) |" in markdown
    assert "| RDB-CL (beta_max=0.2) − GRPO | 2 |" in markdown


def test_page_is_self_contained(runs, tmp_path):
    text = compare_runs(runs, tmp_path / "out").read_text()
    assert "http:" not in text and "https:" not in text and "<script" not in text
    assert "<code>kl.beta_max</code>" in text and "data_seed" not in text


def test_baseline(runs, tmp_path):
    text = compare_runs(runs, tmp_path, baseline="RDB-CL (beta_max=0.2)").read_text()
    assert "Paired differences from RDB-CL (beta_max=0.2)" in text
    with pytest.raises(ValueError, match="no group is called 'sft'"):
        compare_runs(runs, tmp_path, baseline="sft")


def test_paired_needs_common_seeds(make_workdir):
    a = read_run(make_workdir("a", method="grpo", seed=1, **SMALL))
    b = read_run(make_workdir("b", seed=2, **SMALL))
    ours, theirs = group_runs([a, b])
    assert len(paired(ours, theirs, "last", "test")) == 0


def test_one_run_only_partial_runs_and_other_tasks(make_workdir, tmp_path):
    one = make_workdir("one", seed=1, **SMALL)
    partial = make_workdir("two", method="sft", rows=2, **SMALL)
    other = make_workdir("three", tasks=["x", "y"], rows=3, **SMALL)
    for chosen in ([one], [partial], [one, partial], [one, other, partial]):
        text = compare_runs(chosen, tmp_path / "out").read_text()
    assert "RDB-CL (tasks=x &gt; y)" in text and "Accuracy on x → y" in text


def test_many_groups(make_workdir, tmp_path):
    paths = [make_workdir(f"m{i}", method=f"m_{i}&", **SMALL) for i in range(9)]
    text = compare_runs(paths, tmp_path / "out").read_text()
    assert "M_8&amp;" in text and r"M\_8\&" in (tmp_path / "out" / "compare.tex").read_text()


def test_refuses_no_run_and_the_same_run_twice(make_workdir, tmp_path):
    path = make_workdir(**SMALL)
    for workdirs in ([], [path, path]):
        with pytest.raises(ValueError, match="workdir"):
            compare_runs(workdirs, tmp_path / "out")


def test_spread():
    assert spread(np.array([])) == "–"
    assert spread(np.array([-0.05]), signed=True) == "−5.0"
    assert spread(np.array([0.5, 0.6])) == "55.0 ± 7.1"


def test_latex_escape():
    assert latex_escape(r"a_b & 5% #1 {x} ~^\ ±−") == (
        r"a\_b \& 5\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} $\pm$$-$"
    )
