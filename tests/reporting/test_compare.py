import dataclasses
import json
import re

import numpy as np
import pytest
from scipy import stats

from rdbcl_jax.config import RunConfig
from rdbcl_jax.evaluation import Evaluation, split_results
from rdbcl_jax.reporting.compare import compare_runs
from rdbcl_jax.reporting.groups import group_runs, paired
from rdbcl_jax.reporting.intervals import around
from rdbcl_jax.reporting.numbers import percent, spread
from rdbcl_jax.reporting.report import write_report
from rdbcl_jax.reporting.run_files import Run, read_run
from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.reporting.text_tables import latex_escape
from rdbcl_jax.results import RunResults, SplitResults, write_results


def results(method, seed, last, *, done=True, tasks=("a", "b"), **config):
    """Of a run of two tasks; `last` is its one metric."""
    rows = [[0.25, 0.25], [0.5, 0.25], [last, last]] if done else [[0.25, 0.25], [0.5, 0.25]]
    split = SplitResults(rows, rows, [8, 8], {"last": last} if done else {})
    status = "done" if done else "running"
    config = {"seed": seed, **config}
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
        own = {"base": {"seed": seed}}
        paths.append(write(f"grpo{seed}", results("grpo", seed, 0.5 + 0.1 * seed, **own)))
        for beta in (0.1, 0.2):
            done = (seed, beta) != (2, 0.2)
            config = {"kl": {"beta_max": beta, "fresh": 1}, **own}
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


def test_groups_that_differ_in_much_are_numbered(write):
    many = [{f"f{k}": k * n for k in range(1, 5)} for n in (1, 2)]
    paths = [write(f"a{n}", results("rdbcl", 0, 0.5, **config)) for n, config in enumerate(many)]
    paths.append(write("b", results("rdbcl", 1, 0.6, **many[1])))
    assert [g.label for g in group_runs([read_run(p) for p in paths])] == ["RDB-CL 1", "RDB-CL 2"]
    page = compare_runs(paths, paths[0].parent / "out")
    for text in ((page.parent / "compare.md").read_text(), page.read_text()):
        assert "What differs" in text and "f4" in text


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
    assert "<script src" not in text and not re.search(r'(src|href)="(?!data:|#)', text)
    assert "4 runs, 3 configurations" in text and "partial: 1 of 2 tasks" in text
    metrics = read_run(paths[1]).results.metrics("test")
    assert len(metrics) == 12
    cells = " | ".join(percent(v, signed=name in SIGNED) for name, v in metrics.items())
    assert f"| GRPO | 1 | {cells} |" in (tmp_path / "compare.md").read_text()
    assert "Mean accuracy over all tasks after the last one." in text


SIGNED = ("bwt", "bwt_over_t", "fwt_zeroshot", "held_out_change")


def test_what_differs(nine, tmp_path):
    text = compare_runs(nine, tmp_path / "out").read_text()
    assert "<code>kl.beta_max</code>" in text and "base.seed" not in text


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


def interval_rows(page):
    """label → (over, cells) of the table of intervals."""
    block = page[page.index("Could it be chance?") :]
    block = block[: block.index("</table>")]
    labels = re.findall(r'<th scope="col">([^<]+)</th>', block)
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in block.split("<tr>")[2:]]
    return {label: (over, cells) for label, over, *cells in zip(labels, *rows, strict=True)}


def test_intervals_over_seeds(nine, tmp_path):
    rows = interval_rows(compare_runs(nine, tmp_path / "out").read_text())
    low, high = stats.t.interval(0.95, 2, 0.6, 0.1 / np.sqrt(3))
    assert rows["GRPO"] == ("3 seeds", [f"60.0 [{percent(low)}, {percent(high)}]"])
    over, (cell,) = rows["RDB-CL (beta_max=0.1) − GRPO"]
    assert over == "3 seeds" and cell == "<b>+10.0 [+10.0, +10.0]</b>"  # the same in every seed
    over, (cell,) = rows["RDB-CL (beta_max=0.2) − GRPO"]
    assert over == "2 seeds" and cell.startswith("+15.0 [−48.5, ")  # not bold


def test_one_run_each_is_told_over_its_records(write, tmp_path):
    """0.7 points on 256 records are no finding, 30 are one."""
    paths = []
    for method, last in (("grpo", 0.700), ("rdbcl", 0.707), ("mssr", 0.4)):
        found = results(method, 0, last)
        split = dataclasses.replace(found.splits["test"], count=[256, 256])
        paths.append(write(method, dataclasses.replace(found, splits={"test": split})))
    rows = interval_rows(compare_runs(paths, tmp_path / "out").read_text())
    over, (cell,) = rows["GRPO"]
    mean, low, high = map(float, re.findall(r"[\d.]+", cell))
    reach = 196 * np.sqrt(0.7 * 0.3 / 512)  # of the mean over two tasks of 256 records
    assert over == "records" and mean == 70
    assert [high - mean, mean - low] == pytest.approx([reach, reach], abs=0.4)
    assert "<b>" not in rows["RDB-CL − GRPO"][1][0]
    assert rows["MSSR − GRPO"][1][0].startswith("<b>−30.0 [")


def test_an_interval_over_records_lies_around_its_number(write, tmp_path):
    """The best of many noisy rows is above the best of what they are drawn from, here by 4 points:
    0.0 was given as [1.1, 5.7], and a difference of 0.0, as [−6.9, 0.0], was bold."""
    tasks = [f"t{k}" for k in range(12)]
    flat, late = np.full((13, 12), 0.5), np.full((13, 12), 0.1)
    late[-2:] = 0.5
    paths = []
    for method, matrix in (("grpo", flat), ("rdbcl", late)):
        rows = [Evaluation(list(row), [1.0] * 12, [256] * 12) for row in matrix]
        split = split_results(rows, learned=12)
        found = RunResults(method, 0, "done", tasks, splits={"test": split}, config={"seed": 0})
        paths.append(write(method, found))
    page = compare_runs(paths, tmp_path / "out").read_text()
    names = list(read_run(paths[0]).results.metrics("test"))
    for label, (over, row) in interval_rows(page).items():
        assert over == "records" and len(row) == len(names)
        for cell in row:
            value, low, high = map(float, re.findall(r"[+-]?[\d.]+", cell.replace("−", "-")))
            assert low <= value <= high, (label, cell)
        cell = row[names.index("forgetting_max")]
        value, low, high = map(float, re.findall(r"[+-]?[\d.]+", cell.replace("−", "-")))
        assert value == 0 and low < -1 and high > 1 and "<b>" not in cell


def test_draws_without_a_bias_are_left_as_they_are():
    draws = np.random.default_rng(0).normal(0.3, 0.01, 100_000)
    assert around(0.3, draws) == pytest.approx((0.3 - 0.0196, 0.3 + 0.0196), abs=2e-4)
    assert around(0.3, draws + 0.05) == pytest.approx(around(0.3, draws))
    assert around(0.0, np.array([0.0] * 99 + [1e3])) == (-10, 0)  # the mean is above nearly all


def test_what_is_no_share_of_right_answers_has_no_interval(write, tmp_path):
    """CIDEr goes up to 10: a binomial said 135.0 [100.0, 100.0]."""
    paths = []
    for method, last in (("grpo", 1.35), ("rdbcl", 1.9)):
        found = results(method, 0, 0.5)
        rows = [[0.2, 0.2, 0.8], [0.5, 0.2, 1.0], [0.5, 0.5, last]]
        metrics = {"last": 0.5, "held_out_last": last}
        split = SplitResults(rows, np.ones((3, 3)).tolist(), [256] * 3, metrics)
        paths.append(
            write(
                method,
                dataclasses.replace(
                    found, splits={"test": split}, held_out=["c"], measures={"c": "CIDEr-D"}
                ),
            )
        )
    for _, (last, held_out) in interval_rows(
        compare_runs(paths, tmp_path / "out").read_text()
    ).values():
        assert "[" in last and held_out == "–"
    page = write_report(paths[0]).read_text()
    assert "on c: 135.00 %" in page and "on c: 135.00 % ±" not in page
    assert "on b: 50.00 % ± 3.12 (standard error" in page


def test_records_of_another_seed_are_another_configuration(write, tmp_path):
    """`data.seed` draws the test records: their accuracies are of other questions."""
    lasts = {0: 0.5, 1: 0.6, 2: 0.7}
    paths = [
        write(f"g{s}", results("grpo", 0, last, data={"seed": s})) for s, last in lasts.items()
    ]
    paths.append(write("r", results("rdbcl", 0, 0.72, data={"seed": 2})))
    groups = group_runs([read_run(path) for path in paths])
    assert [g.label for g in groups] == [
        *(f"GRPO (seed={s})" for s in lasts),
        "RDB-CL",
    ]
    assert "<code>data.seed</code>" in compare_runs(paths, tmp_path / "out").read_text()


def test_fields_without_effect_are_no_configuration(write):
    here = {"data": {"threads": 8}, "training": {"prompts_per_device": 2, "checkpoint_every": 50}}
    here |= {"mesh": {"data": 1, "fsdp": 4}, "checkpoint": {"keep": 1}}
    paths = [write("here", results("grpo", 0, 0.5, **here)), write("c", results("grpo", 1, 0.6))]
    (group,) = group_runs([read_run(p) for p in paths])
    assert group.label == "GRPO" and group.fields == {}


@pytest.mark.parametrize("field,value", [("dry_run", True), ("model", {"path": "another"})])
def test_what_a_resumed_run_alone_may_change_is_configuration(write, field, value):
    one, other = results("grpo", 0, 0.5, **{field: value}), results("grpo", 1, 0.6)
    assert len(group_runs([read_run(write("one", one)), read_run(write("other", other))])) == 2


def test_a_field_newer_than_a_run_is_at_its_default_there(write):
    at_default, other = ({"loss": {"entropy_share": share}} for share in (1.0, 0.25))
    assert RunConfig().loss.entropy_share == 1
    runs = [
        read_run(write(f"run{seed}", results("grpo", seed, 0.5, **config)))
        for seed, config in enumerate(({}, at_default, other))
    ]
    assert [g.label for g in group_runs(runs[:2])] == ["GRPO"]
    groups = group_runs(runs)
    assert [g.label for g in groups] == ["GRPO (entropy_share=1)", "GRPO (entropy_share=0.25)"]
    assert [len(g.runs) for g in groups] == [2, 1]


def test_a_base_of_each_runs_own_seed_is_no_configuration_and_one_that_is_shared_is(write):
    own = [write(f"o{s}", results("grpo", s, 0.5, base={"seed": s, "steps": 9})) for s in range(3)]
    shared = [
        write(f"s{s}", results("rdbcl", s, 0.5, base={"seed": 0, "steps": 9})) for s in range(3)
    ]
    assert [len(g.runs) for g in group_runs([read_run(p) for p in (*own, *shared)])] == [3, 3]
    assert [g.label for g in group_runs([read_run(p) for p in own])] == ["GRPO"]


def test_a_base_of_one_seed_that_all_runs_share_is_nobodys_own(write):
    """GRPO has but the seed that the base has too: "the run's own" said that it had another."""
    runs = {"g0": ("grpo", 0), "r0": ("rdbcl", 0), "r1": ("rdbcl", 1)}
    paths = [write(name, results(*run, 0.5, base={"seed": 0})) for name, run in runs.items()]
    assert [g.fields for g in group_runs([read_run(p) for p in paths])] == [{}, {}]
    paths[2:] = [write("own", results("rdbcl", 1, 0.5, base={"seed": 1}))]  # of all, now
    assert [g.fields for g in group_runs([read_run(p) for p in paths])] == [{}, {}]
    paths.append(write("m0", results("mssr", 0, 0.5, base={"seed": 7})))
    found = [g.fields["base.seed"] for g in group_runs([read_run(p) for p in paths])]
    assert found == [0, "the run's own", 7]


def test_runs_of_one_seed_count_once(write, tmp_path):
    paths = [write(f"a{n}", results("grpo", 0, 0.5 + n / 10)) for n in range(2)]
    compare_runs(paths, tmp_path / "out")
    assert "| GRPO | 1 | 55.0 |" in (tmp_path / "out/compare.md").read_text()


def test_learning_curves_of_all_groups_lie_over_one_another(tmp_path):
    for name, method, seed in (("a", "grpo", 0), ("b", "grpo", 1), ("c", "rdbcl", 0)):
        write_results_of(tmp_path / name, method, seed)
    page = compare_runs([tmp_path / name for name in "abc"], tmp_path / "out").read_text()
    title = "<figcaption>b: reward"
    data = page[page.index(title) :]
    data = data[data.index('json">') + 6 :]
    chart = json.loads(data[: data.index("</script>")])
    lines = [(line["label"], line["faint"], line["y"]) for line in chart["lines"]]
    assert chart["x"] == [0, 1] and lines == [
        ("GRPO, run 1", True, [0, 1]),
        ("GRPO, run 2", True, [1, 2]),
        ("GRPO", False, [0.5, 1.5]),
        ("RDB-CL", False, [0, 1]),
    ]


def write_results_of(workdir, method, seed):
    with RunLog(workdir) as log:
        for step in range(4):
            row = {"step": step, "task": "ab"[step // 2], "reward": seed + step % 2}
            log.write_step(row)
        log.write_results(results(method, seed, 0.5))
