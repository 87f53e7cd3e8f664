import json
import re

import numpy as np
import pytest

from rdbcl_jax.reporting.metric_table import CONTINUAL
from rdbcl_jax.reporting.report import write_report
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.results import RunResults, SplitResults

SMALL = {"steps": 4, "samples": 6, "examples": 1}
NASTY = '<script>alert("x")</script><img src=x onerror=y>&amp;'


def text_of(workdir):
    return write_report(workdir).read_text()


@pytest.fixture(scope="module")
def full(full_workdir):
    return read_run(full_workdir), text_of(full_workdir)


def cells(text, caption):
    """Rows of the heat map under a caption."""
    block = text[text.index(f"<figcaption>{caption}") :]
    block = block[: block.index("</table>")]
    rows = re.findall(r"<tr><th.*?</tr>", block)
    return [re.findall(r'class="cell[^>]*>([^<]*)<', row) for row in rows]


def test_self_contained_and_small(full):
    _, text = full
    assert "http:" not in text and "https:" not in text and "<script" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert len(text) < 3_000_000


@pytest.mark.parametrize(
    "what, caption", [("accuracy", "Accuracy, %"), ("parse_rate", "Parse rate")]
)
def test_matrices_show_the_input(full, what, caption):
    run, text = full
    expected = [[f"{100 * v:.1f}" for v in row] for row in run.matrix("test", what)]
    assert cells(text, caption) == expected


def test_metrics_and_headline_show_the_input(full):
    run, text = full
    metrics = run.results.metrics("test")
    for name, value in metrics.items():
        row = re.search(rf"<code>{name}</code></th><td>([^<]*)</td>", text)
        assert float(row[1].replace("−", "-")) == pytest.approx(100 * value, abs=0.05)
        assert name in CONTINUAL
    assert f'<span class="value">{100 * metrics["last"]:.1f}</span>' in text


def test_sections_and_panels(full):
    _, text = full
    for title in ("Accuracy", "Metrics", "Learning", "Health of the run", "Examples", "Setup"):
        assert f"<h2>{title}</h2>" in text
    for words in ("Reasoning portability", "A loss near 0 is normal", "KL to the previous policy"):
        assert words in text
    assert "Sampler&#39;s log-probs" in text and "clip_ratio/high_mean" in text
    assert text.count("<svg") > 25 and "data:image/png;base64" in text
    assert "learning_rate" in text and "0.10.2" in text


def test_partial_run(make_workdir):
    workdir = make_workdir(rows=2, **SMALL)
    text = text_of(workdir)
    assert "partial: 1 of 5 tasks" in text
    table = cells(text, "Accuracy, %")
    assert "–" not in table[0] + table[1] and {cell for row in table[2:] for cell in row} == {"–"}


@pytest.mark.parametrize("rows", [1, 6])
def test_without_portability_images_or_samples(make_workdir, rows):
    workdir = make_workdir(
        method="grpo", portability=False, rows=rows, steps=3, samples=4, examples=0
    )
    text = text_of(workdir)
    assert "GRPO on 5 tasks" in text
    assert "Reasoning portability" not in text and "<h2>Examples" not in text


def test_only_metrics(tmp_path):
    with RunLog(tmp_path) as log:
        for step in range(3):
            log.write_step(
                {"step": step, "task": "a", "reward": 0.5, "odd/new key": step, "s": "x"}
            )
    text = text_of(tmp_path)
    assert "odd/new key" in text and "partial: 0 of 1 tasks" in text


def test_only_results(tmp_path):
    splits = {"test": SplitResults(accuracy=[[0.5]])}
    results = RunResults(method="zero_shot", tasks=["a"], splits=splits)
    with RunLog(tmp_path) as log:
        log.write_results(results)
    assert "50.0" in text_of(tmp_path)


def test_metrics_that_are_never_finite_or_change_kind(tmp_path):
    with RunLog(tmp_path) as log:
        for step in range(3):
            log.write_step({"step": step, "task": "a", "kl": np.nan, "odd": [1, "x", None][step]})
    assert "KL to the previous policy" not in text_of(tmp_path)


def test_text_is_escaped(make_workdir):
    workdir = make_workdir(tasks=["sum", NASTY], rows=3, config={NASTY: NASTY}, **SMALL)
    examples = json.loads((workdir / "examples.json").read_text())
    keys = ("prompt", "gold", "task", "record_id")
    examples = [
        e | dict.fromkeys(keys, NASTY) | {"tokens": [NASTY], "image": None} for e in examples
    ]
    (workdir / "examples.json").write_text(json.dumps(examples))
    text = text_of(workdir)
    assert "<script" not in text and "<img src=x" not in text
    assert "&lt;script&gt;" in text and "&amp;amp;" in text


def test_examples_mark_spans_and_numbers(make_workdir):
    workdir = make_workdir(rows=2, steps=2, samples=2, examples=0)
    example = {
        "task": "sum",
        "step": 1,
        "image": "bm90IGEgcGljdHVyZQ==",
        "prompt": "p",
        "tokens": ["<think>", "one\n", "2"],
        "spans": ["other", "reasoning", "answer"],
        "policy_logps": [0.0, -0.5, -1.0],
        "reference_logps": [0.0, -0.75, None],
        "correct": False,
    }
    (workdir / "examples.json").write_text(json.dumps([example]))
    text = text_of(workdir)
    assert "log π −0.500, log π_ref −0.750, difference −0.250" in text
    assert '<span class="ans" title="answer">2</span>' in text
    assert "one⏎\n" in text and '<span class="o">&lt;think&gt;</span>' in text
    assert "(no picture)" in text and "✗ wrong" in text


def test_large_pictures_are_made_smaller(make_workdir):
    import base64
    import io

    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    workdir = make_workdir(rows=2, **SMALL)
    path = workdir / "examples.json"
    example = json.loads(path.read_text())[0]
    example["image"] = base64.b64encode(buffer.getvalue()).decode()
    path.write_text(json.dumps([example] * 5))
    text = text_of(workdir)
    assert len(buffer.getvalue()) > 2_000_000 > len(text) and "data:image/jpeg" in text


def test_many_tasks_with_long_names(make_workdir):
    tasks = [f"a rather long name of task number {k}" for k in range(8)]
    text = text_of(make_workdir(tasks=tasks, rows=9, steps=2, samples=3, examples=1))
    assert len(cells(text, "Accuracy, %")) == 9
