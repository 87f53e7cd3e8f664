"""A workdir and what it holds are data: nothing of it is run, and no name leads out of --out."""

import ast
import base64
import dataclasses
import io
import json
import pathlib
import re
import sys

import numpy as np
import pytest
from PIL import Image

import rdbcl_jax
from rdbcl_jax.config import RunConfig
from rdbcl_jax.reporting.compare import compare_runs
from rdbcl_jax.reporting.examples import read_picture
from rdbcl_jax.reporting.report import write_report
from rdbcl_jax.reporting.text_tables import (
    Markdown,
    latex_escape,
    latex_table,
    markdown_escape,
    markdown_table,
)
from rdbcl_jax.results import RunResults, SplitResults, write_results
from rdbcl_jax.training.collect import collect
from rdbcl_jax.workdir import check_names_no_code
from tests.engine import small_config

ROOT = pathlib.Path(rdbcl_jax.__file__).parent
EVIL = "<script>alert(1)</script>|`a`](http://x)![b](c)$\\frac$ **_\n# \\input{/etc/passwd}\r%"


def finished_run(workdir, config, tasks=("sum", "jigsaw")):
    """The files of a workdir whose first task is finished, as far as commands look at them."""
    (workdir / "checkpoints/task_01").mkdir(parents=True)
    (workdir / "base").mkdir()
    (workdir / "base/config.json").write_text("{}")
    split = SplitResults([[0.1, 0.2]] * 3, [[0.5, 0.5]] * 3, [8, 8], {"last": 0.2})
    found = RunResults("grpo", 0, "done", list(tasks), splits={"test": split}, config=config)
    write_results(workdir, found)
    return workdir


@pytest.mark.parametrize(
    "field,value",
    [
        ("rewards.functions", {"mine": "evil_module:reward"}),
        ("demonstrations.refiner", "evil_module:refine"),
        ("sequence", ("evil_module:task",)),
        ("evaluation.tasks", ("evil_module:task",)),
        ("tasks", {"sum": {"train": "evil_module:task"}}),
        ("tasks", {"sum": {"train": "a.jsonl", "verifier": "evil.module:judge:0.5"}}),
        ("rewards.if_correct", ("evil_module:reward",)),
        ("rewards.functions", {"mine": "evil_module.py:reward"}),
        ("rewards.functions", {"mine": "evil-module.py:reward"}),
        ("demonstrations.refiner", "evil:module.py:refine"),
        ("tasks", {"sum": {"train": "a.jsonl", "verifier": "evil-module.py:judge:0.5"}}),
    ],
)
def test_collect_imports_nothing_that_a_workdir_names(tmp_path, monkeypatch, field, value):
    for name in ("evil_module.py", "evil-module.py", "evil:module.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = RunConfig.of(small_config()).changed({"rewards.functions": {}, field: value})
    workdir = finished_run(tmp_path / "run", config.to_dict())
    with pytest.raises(ValueError, match=r"results.json names 'evil.module(\.py)?:.*--config=FILE"):
        collect(str(workdir), tmp_path / "out")
    assert "evil_module" not in sys.modules and not (tmp_path / "out").exists()


def test_configs_that_name_no_code():
    config = RunConfig.of(small_config()).changed(
        {
            "rewards.functions": {"short": "overlong:1024:256"},
            "sequence": ("digits:sum", "forks:add", "mine"),
            "tasks": {
                "mine": {
                    "train": "tfds:charts/train",
                    "test": "C:/data/a.jsonl",
                    "verifier": "number:0.05",
                }
            },
            "data.template": "Question: {prompt}",
        }
    )
    check_names_no_code(config, "here")


def test_collect_takes_the_callers_config_of_the_same_tasks(tmp_path):
    workdir = finished_run(tmp_path / "run", RunConfig.of(small_config()).to_dict())
    other = RunConfig.of(small_config()).changed({"sequence": ("walk",)})
    with pytest.raises(ValueError, match=r"config.sequence is \('walk',\), and .* \('sum'"):
        collect(str(workdir), tmp_path / "out", other)


def test_collect_writes_nowhere_but_in_out(tmp_path):
    changed = {"rewards.functions": {}, "sequence": ("digits:../../gone",)}
    config = RunConfig.of(small_config()).changed(changed)
    workdir = finished_run(tmp_path / "run", config.to_dict())
    before = {*tmp_path.rglob("*")}
    with pytest.raises(ValueError, match="can be part of a file's name"):
        collect(str(workdir), tmp_path / "a/b/out")
    assert {*tmp_path.rglob("*")} == before


def test_tables_show_any_text_as_it_is():
    table = markdown_table(["method", "n"], [[EVIL, "1"], [Markdown("**a**"), "2"]])
    lines = table.splitlines()
    assert len(lines) == 4 and lines[3] == "| **a** | 2 |"
    assert "<" not in table and len(re.findall(r"(?<!\\)\|", lines[2])) == 3
    assert not re.search(r"(?<!\\)[`$*]|(?<!\\)\]\(", lines[2])
    assert markdown_escape("RDB-CL (beta_max=0.1) − 95 % [a] x_") == (
        r"RDB-CL (beta_max=0.1) − 95 % [a] x\_"
    )
    assert markdown_escape(markdown_escape("a*b")) == r"a\*b"
    tex = latex_table(["method", "$n$"], [["[1ex] a", "*"], [EVIL, "1"]], caption="c")
    rows = tex.splitlines()[6:8]
    assert rows[0] == r"{[}1ex{]} a & {*} \\" and rows[1].endswith(r"\% & 1 \\")
    assert r"\input" not in tex and r"\textbackslash{}input\{/etc/passwd\}" in tex
    assert "\n" not in latex_escape(EVIL)


def test_reports_of_hostile_names(tmp_path):
    config = {"note": EVIL, "model": {EVIL: EVIL}}
    tasks = (EVIL, "$\\frac$ 2 $")
    workdirs = [finished_run(tmp_path / name, config, tasks) for name in "ab"]
    write_results(
        workdirs[1],
        dataclasses.replace(
            RunResults(EVIL, 1, "done", list(tasks), config={"note": "b"}),
            splits={"test": SplitResults([[0.1, 0.2]] * 3, [[1, 1]] * 3, [8, 8], {"last": 0.2})},
        ),
    )
    steps = [{"step": i, "task": EVIL, "task_step": i, "reward": 0.1, EVIL: i} for i in range(3)]
    (workdirs[0] / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    examples = [{"task": EVIL, "step": 0, "prompt": EVIL, "tokens": [EVIL], "spans": [EVIL]}]
    (workdirs[0] / "examples.json").write_text(json.dumps(examples))
    target = tmp_path / "precious"
    target.write_text("mine")
    for name in ("report.html", "report.html.tmp"):
        (workdirs[0] / name).symlink_to(target)
    page = write_report(workdirs[0]).read_text()
    compare_runs(workdirs, tmp_path / "out")
    assert target.read_text() == "mine"
    for text in (page, (tmp_path / "out/compare.html").read_text()):
        assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "compare.html",
        "compare.md",
        "compare.tex",
    }
    assert "<script>" not in (tmp_path / "out/compare.md").read_text()
    assert r"\input" not in (tmp_path / "out/compare.tex").read_text()


def test_pictures_of_a_report_are_raster_images():
    def text(image, kind):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        return base64.b64encode(buffer.getvalue()).decode()

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))
    assert read_picture(text(noise, "PNG")).source.startswith("data:image/jpeg;base64,")
    assert read_picture(text(noise.resize((8, 8)), "PNG")).small
    for bad in (text(noise, "EPS"), text(noise, "PNG")[:-4000], "no base64!", ""):
        assert read_picture(bad) is None


def test_nothing_is_unpickled_or_evaluated():
    """Weights are safetensors and orbax', data JSON and Parquet: no format that runs code."""
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}
    calls = {"eval", "exec", "compile", "__import__"}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
                assert not forbidden & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                called = node.func
                assert not (isinstance(called, ast.Name) and called.id in calls), path
                options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                assert not options.get("allow_pickle"), path
                if ast.unparse(called).startswith("yaml."):
                    assert called.attr == "safe_load", path
                if ast.unparse(called) == "np.load":
                    assert options.get("allow_pickle") is False, path
                assert not options.get("trust_remote_code"), path
