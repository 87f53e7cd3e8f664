"""`write_report(workdir)`: one run as one self-contained HTML page, finished or not."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from rdbcl_jax.json_files import plain
from rdbcl_jax.reporting import page, plots
from rdbcl_jax.reporting.page import escape, percent
from rdbcl_jax.reporting.progress import duration
from rdbcl_jax.reporting.run_files import Run, read_run
from rdbcl_jax.results import SplitResults

DEFINITIONS = {
    "last": "Mean accuracy over all tasks after the last one.",
    "avg_seen": "After each task, mean accuracy over the tasks seen so far; then the mean.",
    "avg_all": "After each task, mean accuracy over all tasks, unseen ones too; then the mean.",
    "mft": "Mean accuracy on each task just after its own training (plasticity).",
    "bwt": "Backward transfer: final minus just-trained accuracy, averaged over all but the last"
    " task (÷ T − 1).",
    "bwt_over_t": "The same sum ÷ T, as some toolkits have it.",
    "forgetting_first": "Just-trained minus final accuracy: −bwt.",
    "forgetting_max": "Best earlier minus final accuracy, averaged over all but the last task.",
    "transfer": "Mean accuracy on tasks still to come, after each task (upper triangle).",
    "fwt_zeroshot": "Forward transfer: accuracy on a task just before its training, minus the"
    " base model's.",
    "held_out_last": "Mean accuracy over the tasks that were not learned, after the last one that"
    " was.",
    "held_out_change": "The same minus the base model's: negative where they were forgotten.",
}
SIGNED = {"bwt", "bwt_over_t", "fwt_zeroshot", "held_out_change"}  # differences: shown with a sign

PANELS = {  # of the section on the run's health: key → title, note
    "kl": ("KL to the previous policy", "nats per token; starts at 0 with every task"),
    "entropy": ("Entropy", "nats per token; a collapse ends exploration"),
    "completions/mean_length": ("Response length", "tokens"),
    "completions/clipped_ratio": ("Responses cut off", "share that hit the length limit"),
    "frac_reward_zero_std": ("Silent groups", "share whose rewards are all equal: no gradient"),
    "parse_rate": ("Parse rate", "share of sampled responses in the required format"),
    "policy_loss": ("Policy loss", "near 0 by construction"),
    "kl_loss": ("KL loss", "KL × β, as it enters the loss"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "step_time": ("Time per step", "seconds; rare peaks (compilations) are cut off"),
}
LOG_SCALE, CUT_PEAKS = {"sampler/logp_difference_max"}, {"step_time"}
LEARNING = {"reward": "reward", "accuracy": "accuracy of the samples"}

HEALTH_NOTES = (
    "<b>A loss near 0 is normal.</b> Advantages sum to 0 within a group, and with one update per"
    " batch every probability ratio is 1: the policy loss is then about 0 (or slightly negative)"
    " while its gradient is not. Judge learning by reward and accuracy, never by the loss.",
    "<b>KL restarts at 0</b> with every task, since the reference is the policy from just before"
    " it. A rise within a task is the distance travelled; a sudden peak is a warning.",
    "<b>Silent groups</b> teach nothing: all of their responses were equally right or wrong. Many"
    " of them early means too hard, late means solved.",
)

EXAMPLES_PER_TASK, MAX_EXAMPLES = 3, 18
MAX_IMAGE_SIDE, MAX_IMAGE_BYTES = 512, 60_000


def write_report(workdir: str | os.PathLike) -> Path:
    """Write `report.html` into a workdir from the files there; returns its path."""
    run = read_run(workdir)
    body = "\n".join(
        (
            _header(run),
            _result(run),
            _metrics(run),
            _learning(run),
            _portability(run),
            _health(run),
            _examples(run),
            _setup(run),
        )
    )
    path = Path(workdir) / "report.html"
    path.write_text(page.page(f"{page.method_name(_method(run))} report", body), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------ headline


def _method(run: Run) -> str:
    return run.results.method or "run"


def main_split(run: Run) -> str:
    """The split that the headline shows: test where there is one."""
    splits = list(run.results.splits)
    return "test" if "test" in splits or not splits else splits[0]


def _header(run: Run) -> str:
    results, done = run.results, run.tasks_done
    if run.complete:
        status = '<span class="status done">done</span>'
    else:
        status = f'<span class="status running">partial: {done} of {len(run.tasks)} tasks</span>'
    facts = [f"seed {results.seed}"] if results.seed is not None else []
    facts += [results.device] if results.device else []
    facts += [f"{len(run.steps)} steps logged"] if run.steps else []
    facts += [duration(total)] if (total := _total_seconds(run)) else []
    meta = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    count = f"{len(run.tasks)} task{'s' if len(run.tasks) > 1 else ''}"
    return (
        f"<h1>{escape(page.method_name(_method(run)))} on {count} {status}</h1>\n"
        f'<p class="meta">{meta}</p>\n{_task_legend(run)}{_tiles(run)}'
    )


def _task_legend(run: Run) -> str:
    return page.legend(plots.colours(run.tasks).items())


def _tiles(run: Run) -> str:
    split = main_split(run)
    metrics, matrix = _split_metrics(run, split), run.matrix(split)
    base, last = matrix[0].mean(), metrics.get("last")
    note = f"base model {percent(base)}"
    if last is not None and math.isfinite(last - base):
        note += f" {_change(last - base)}"
    tiles = (
        page.tile("Last", percent(last), note),
        page.tile("Avg", percent(metrics.get("avg_seen")), "over tasks seen so far"),
        page.tile("BWT", percent(metrics.get("bwt"), signed=True), "backward transfer, points"),
        page.tile("Forgetting", percent(metrics.get("forgetting_max")), "from the best, points"),
        *_held_tile(run, metrics),
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _held_tile(run: Run, metrics: dict[str, Any]) -> list[str]:
    if not run.held_out:
        return []
    change = metrics.get("held_out_change")
    note = f"{len(run.held_out)} tasks not learned"
    note += "" if change is None else f" {_change(change)}"
    return [page.tile("Held out", percent(metrics.get("held_out_last")), note)]


def _change(points: float) -> str:
    direction = "up" if points > 0 else "down"
    return f'<b class="{direction}">{percent(points, signed=True)}</b>'


def _split_metrics(run: Run, split: str) -> dict[str, Any]:
    return run.results.metrics(split)


# ------------------------------------------------------------------------------ accuracy


def _result(run: Run) -> str:
    if not run.tasks:
        return ""
    split = main_split(run)
    matrix = run.matrix(split)
    others = [name for name in run.results.splits if name != split]
    pictures = (
        page.figure(
            plots.retention(matrix, run.tasks),
            "Along the sequence, %",
            "dotted: not trained on yet; large dot: just trained",
        ),
        page.figure(
            plots.before_and_after(matrix, run.tasks),
            "Gained and kept, %",
            "ring: base model; pale dot: just trained; large dot: last row",
        ),
    )
    if run.held_out:
        pictures += (_held(run),)
    return page.section(
        "Accuracy",
        _matrices(run, split),
        _task_legend(run),
        page.grid(pictures, wide=True),
        page.legend(plots.colours(run.held_out).items()) if run.held_out else "",
        *(page.details(f"The {name} split", _matrices(run, name)) for name in others),
        intro=f"Accuracy on every task ({escape(split)} split, %) before training and after each"
        " task. A frame marks the task that was just trained: below it is what was kept, to its"
        " right what is still to come.",
    )


def _held(run: Run) -> str:
    """Tasks that are not learned, along the run."""
    points = run.measured()
    steps = np.array(sorted(points))
    accuracies = np.array([points[step] for step in steps])[:, len(run.tasks) :]
    drawing = plots.held_out(steps, accuracies, run.held_out)
    return page.figure(drawing, "Not learned, %", "validation split; colours below")


def _matrices(run: Run, split: str) -> str:
    """Accuracy and parse rate, side by side unless the tasks are too many."""
    data = run.results.splits.get(split, SplitResults())
    counts = data.count
    columns = len(run.tasks) + len(run.held_out)
    words = "framed: just trained" + ("; slanted: not learned" if run.held_out else "")
    caption, same = (
        f"Accuracy, %<small>{words}</small>",
        {"held_out": run.held_out, "counts": counts},
    )
    maps = [page.heat_map(run.matrix(split, held_out=True), run.tasks, caption=caption, **same)]
    if data.parse_rate:
        caption = "Parse rate, %<small>losing the format is not losing the knowledge</small>"
        parse = run.matrix(split, "parse_rate", held_out=True)
        maps.append(page.heat_map(parse, run.tasks, caption=caption, hue="parse", **same))
    return page.grid(maps, wide=True) if columns <= 7 else "\n".join(maps)


def _metrics(run: Run) -> str:
    splits = list(run.results.splits)
    splits.sort(key=lambda name: name != main_split(run))
    values = {split: _split_metrics(run, split) for split in splits}
    names = dict.fromkeys([*DEFINITIONS, *(name for v in values.values() for name in v)])
    names = [name for name in names if any(name in v for v in values.values())]
    if not names:
        return ""
    rows = (
        [
            f"<code>{escape(name)}</code>",
            *(percent(v.get(name), signed=name in SIGNED) for v in values.values()),
            escape(DEFINITIONS.get(name, "")),
        ]
        for name in names
    )
    header = ["metric", *(f"{escape(split)}, %" for split in splits), "definition"]
    return page.section(
        "Metrics",
        page.table(header, rows, kind="lined metrics"),
        intro="Toolkits disagree on these definitions by several points, so all are here. A dash"
        " means that the metric needs rows which the run has not reached.",
    )


# ------------------------------------------------------------------------------ curves


def _task_start(run: Run, task: str) -> int:
    return next((row["step"] for row in run.steps if row.get("task") == task), 0)


def _learning(run: Run) -> str:
    tasks = [task for task in run.tasks if len(run.series("reward", task)[0])]
    curves, points = {}, {}
    for task in tasks:
        start = _task_start(run, task)
        local = {key: run.series(key, task) for key in LEARNING}
        curves[task] = {key: (x - start, y) for key, (x, y) in local.items() if len(x)}
        x, y = run.series(f"eval/{task}/accuracy", task)
        points[task] = (x - start, y)
    if not tasks:
        return ""
    pooled = [y for c in curves.values() for _, y in c.values()] + [y for _, y in points.values()]
    low, high = plots.pooled_limits(np.concatenate(pooled))
    longest = max(x.max() for c in curves.values() for x, _ in c.values())
    limits = {"xlim": (-0.5, max(longest, 1) + 0.5), "ylim": (min(low, 0.0), max(high, 1.0))}
    figures = (
        page.figure(plots.learning_curve(curves[task], points[task], **limits), f"{k + 1} {task}")
        for k, task in enumerate(tasks)
    )
    keys = page.legend(zip(LEARNING.values(), plots.PALETTE, strict=False))
    dot = '<span class="key"><i class="dot"></i>validation accuracy</span></p>'
    if any(len(x) for x, _ in points.values()):
        keys = keys.removesuffix("</p>") + dot
    return page.section(
        "Learning",
        keys,
        page.grid(figures),
        intro="Each task during its own training; faint: every step, firm: moving average.",
    )


def _portability(run: Run) -> str:
    columns = {"RP": "rp", "β": "kl_coef"}
    samples = run.samples
    names = samples.column_names if samples is not None else []
    data = {label: _floats(samples[column]) for label, column in columns.items() if column in names}
    data = {label: values for label, values in data.items() if np.isfinite(values).any()}
    if not data:
        return ""
    limits = {label: plots.pooled_limits(values) for label, values in data.items()}
    of_task = np.asarray(samples["task"].to_pylist(), object)
    steps = samples["step"].to_numpy()
    figures = []
    for k, task in enumerate(run.tasks):
        rows = of_task == task
        if rows.any():
            local = {label: values[rows] for label, values in data.items()}
            drawing = plots.portability(steps[rows] - _task_start(run, task), local, limits)
            figures.append(page.figure(drawing, f"{k + 1} {task}"))
    return page.section(
        "Reasoning portability and the anchor" if "RP" in data else "The anchor",
        page.legend([("share of the step's samples", plots.ACCENT), ("mean", plots.SECOND)]),
        page.grid(figures),
        intro="One value per sampled response, as histograms over time. Reasoning portability (RP)"
        " says how readily the policy from before the task would have produced the response’s"
        " reasoning; for the <code>ratio</code> kind, 1 means just as readily as the policy that"
        " sampled it. β is the KL coefficient that the response got. (Definitions are our"
        " reconstruction of the RDB-CL paper.)",
    )


def _floats(column: Any) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in column.to_pylist()], float)


def _health(run: Run) -> str:
    figures = [_timeline(run, key, *words) for key, words in PANELS.items() if key in run.keys]
    shown = {*PANELS, *LEARNING} - {"reward", "accuracy"}
    others = [key for key in run.keys if key not in shown and not key.startswith("eval/")]
    if not figures and not others:
        return ""
    notes = "".join(f"<li>{note}</li>" for note in HEALTH_NOTES)
    return page.section(
        "Health of the run",
        _task_legend(run),
        page.grid(figures),
        f'<h3>How to read these</h3><ul class="notes">{notes}</ul>',
        page.details(
            f"All other metrics ({len(others)})",
            page.grid(_timeline(run, key, key) for key in others) if others else "",
        ),
    )


def _timeline(run: Run, key: str, title: str, note: str = "") -> str:
    curves = {task: run.series(key, task) for task in run.tasks}
    positive = all((y[np.isfinite(y)] > 0).all() for _, y in curves.values())
    log = key in LOG_SCALE and positive
    drawing = plots.timeline(curves, log=log, cut=key in CUT_PEAKS)
    return page.figure(drawing, title, note)


# ------------------------------------------------------------------------------ examples


def _examples(run: Run) -> str:
    by_task = {task: [e for e in run.examples if e.get("task") == task] for task in run.tasks}
    by_task = {task: found for task, found in by_task.items() if found}
    if not by_task:
        return ""
    each = max(1, min(EXAMPLES_PER_TASK, MAX_EXAMPLES // len(by_task)))
    shown = {task: found[-each:] for task, found in by_task.items()}
    scale = _ratio_scale([e for found in shown.values() for e in found])
    blocks = []
    for task, found in shown.items():
        blocks.append(f"<h3>{escape(task)}</h3>")
        blocks += [_example(example, scale) for example in found]
    bar = (
        '<p class="ramp"><span>likelier now than under the previous policy</span><i></i>'
        "<span>likelier under the previous policy</span>"
        f"<span>full colour at ±{scale:.2g} nats</span>"
        '<span class="tokens"><span class="ans">answer</span></span></p>'
    )
    return page.section(
        "Examples",
        bar,
        *blocks,
        intro="The last examples of each task. Every reasoning and answer token is coloured by"
        " log π<sub>ref</sub> − log π, reference against policy; point at one for its numbers.",
    )


def _ratio_scale(examples: Sequence[dict]) -> float:
    ratios = [r for e in examples for r in _ratios(e) if math.isfinite(r)]
    return max(float(np.quantile(np.abs(ratios), 0.95)), 0.05) if ratios else 1.0


def _ratios(example: dict) -> list[float]:
    pairs = zip(example.get("reference_logps") or [], example.get("policy_logps") or [])  # noqa: B905
    return [math.nan if r is None or p is None else r - p for r, p in pairs]


def _example(example: dict, scale: float) -> str:
    image = _image(example.get("image"))
    facts = [f"step {example['step']}"] if "step" in example else []
    facts += [f"record {example['record_id']}"] if example.get("record_id") is not None else []
    facts += [f"gold answer {example['gold']}"] if example.get("gold") is not None else []
    for key, label in (("reward", "reward"), ("rp", "RP"), ("kl_coef", "β")):
        if example.get(key) is not None:
            facts.append(f"{label} {example[key]:.3g}")
    spans = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    right = example.get("correct")
    verdict = "" if right is None else _verdict(bool(right))
    return (
        f'<div class="example"><div>{image}</div><div>'
        f'<p class="prompt">{escape(example.get("prompt", ""))}</p>'
        f'<div class="tokens">{_tokens(example, scale)}</div>'
        f'<p class="facts">{verdict}{spans}</p></div></div>'
    )


def _verdict(right: bool) -> str:
    return f'<span class="{"up" if right else "down"}">{"✓ right" if right else "✗ wrong"}</span>'


def _tokens(example: dict, scale: float) -> str:
    tokens = example.get("tokens") or []
    spans = example.get("spans") or ["other"] * len(tokens)
    ratios = _ratios(example) or [math.nan] * len(tokens)
    logps = example.get("policy_logps") or [None] * len(tokens)
    columns = zip(tokens, spans, ratios, logps)  # noqa: B905
    return "".join(_token(*column, scale) for column in columns)


def _token(token: str, span: str, ratio: float, logp: float | None, scale: float) -> str:
    text = escape(token).replace("\n", "⏎\n")
    if span not in ("reasoning", "answer"):
        return f'<span class="o">{text}</span>'
    classes, style, title = ["ans"] if span == "answer" else [], "", span
    if math.isfinite(ratio):
        classes.append("r" if ratio > 0 else "p")
        style = f' style="--a:{0.75 * min(abs(ratio) / scale, 1):.2f}"'
        title += f": log π {logp:.3f}, log π_ref {logp + ratio:.3f}, difference {ratio:+.3f}"
    return f'<span class="{" ".join(classes)}"{style} title="{title}">{text}</span>'


def _image(data: str | None) -> str:
    """An <img> of a base64 picture, made smaller if large; nothing if it is not a picture."""
    if not data:
        return ""
    try:
        raw = base64.b64decode(data.split(",")[-1])
        image = Image.open(io.BytesIO(raw))
        image.load()
    except (binascii.Error, UnidentifiedImageError, OSError, ValueError):
        return '<p class="intro">(no picture)</p>'
    small = max(image.size) < 150
    if len(raw) > MAX_IMAGE_BYTES:
        image = image.convert("RGB")
        image.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
        kind = "JPEG"
    else:
        kind = "PNG"
    buffer = io.BytesIO()
    image.save(buffer, kind)
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img class="{"small" if small else ""}" src="{source}" alt="the prompt’s picture">'


# ------------------------------------------------------------------------------ setup


def _setup(run: Run) -> str:
    results = run.results
    facts = {"device": results.device} if results.device else {}
    facts |= results.versions
    config = json.dumps(plain(results.config), indent=2, ensure_ascii=False)
    return page.section(
        "Setup",
        page.details("Configuration", f"<pre>{escape(config)}</pre>" if config != "{}" else ""),
        page.details("Environment", _facts(facts)),
        _timing(run),
    )


def _facts(facts: dict[str, Any]) -> str:
    rows = ((escape(name), escape(_short(value))) for name, value in facts.items())
    return page.table((), rows) if facts else ""


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _seconds(run: Run) -> dict[str, float]:
    return dict(run.results.timing)


def _total_seconds(run: Run) -> float:
    seconds = _seconds(run)
    return seconds.get("total", sum(seconds.values()))


def _timing(run: Run) -> str:
    seconds, total = _seconds(run), _total_seconds(run)
    if not total:
        return ""
    rows = [
        [
            escape(name),
            duration(value),
            f"{100 * value / total:.0f} %",
            f'<span class="bar" style="width:{100 * min(value / total, 1):.1f}%"></span>',
        ]
        for name, value in sorted(seconds.items(), key=lambda item: -item[1])
        if name != "total"
    ]
    rows.append(["total", duration(total), "", ""])
    return "<h3>Where the time went</h3>" + page.table((), rows, kind="timing")
