"""What `rdbcl score` writes: the table of samples, the reliability of every signal, a picture."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.check import Check
from rdbcl_jax.data.sizes import with_sizes
from rdbcl_jax.data.tasks import load_split, read_source
from rdbcl_jax.json_files import plain
from rdbcl_jax.lab.portability.measure import KINDS, LEVELS, SAMPLERS, Samples, Source, measure
from rdbcl_jax.lab.portability.ranking import Estimate, reliability
from rdbcl_jax.policy import record_check
from rdbcl_jax.reporting import plots
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.snapshots import load_snapshots
from rdbcl_jax.workdir import directory_of, place

DASH = "–"
SCOPES = {"in": "in distribution", "out": "out of distribution"}
QUESTIONS = {
    "ported": "the reference's reasoning, continued by the trained policy, is right; "
    "signals are means over a prompt's samples",
    "ported_sample": "the same, sample by sample: each reasoning beside its own signal",
    "correct": "the trained policy's own sample is right, sample by sample",
}

Measured = list[tuple[Source, dict[str, Samples]]]


class Row(NamedTuple):
    """How reliable one signal is for one question within one scope (`in`, `out`, or a source)."""

    question: str
    scope: str
    samples: str  # whose samples the signal is of
    kind: str
    level: str
    auroc: Estimate
    spearman: Estimate
    prompts: int


def run_score(
    config: RunConfig | Mapping[str, Any],
    checkpoint: str,
    reference: str,
    records: Sequence[str],
    ood: Sequence[str],
    out: str | pathlib.Path,
    *,
    split: str = "test",
    limit: int = 0,
) -> dict[str, Any]:
    """Measures every source and writes samples.parquet, summary.json, summary.md and score.png.

    Args:
      checkpoint, reference: the trained and the previous policy, as `load_snapshots` names them.
      records, ood: sources in and out of the reference's distribution: tasks that it has learned,
        and tasks that it has not. As in a config's tasks, or the name of one of them.
      split: of the sources that have splits.
      limit: most records of each source; 0: all.
    Returns:
      The content of summary.json.
    """
    config = RunConfig.of(config)
    check = check_of(config, checkpoint)
    sources = read_sources(config, records, split, limit, check=check)
    sources += read_sources(config, ood, split, limit, check=check, out_of_distribution=True)
    if not sources:
        raise ValueError("no data: give --records=SOURCE, --ood=SOURCE or several of both")
    sources = told_apart(sources, [*records, *ood])
    config = with_sizes(config, [source.records for source in sources], check)
    trained, previous = load_snapshots(
        config, (checkpoint, reference), make_mesh(**config.mesh.to_dict())
    )
    key = jax.random.key(config.seed)
    measured = []
    for index, source in enumerate(sources):
        print(f"{source.name}: {len(source.records)} records", flush=True)
        samples = measure(config, trained, previous, source, jax.random.fold_in(key, index))
        measured.append((source, samples))
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(to_table(measured), out / "samples.parquet")
    signals = [row._asdict() for row in summarise(measured)]
    summary = {
        "checkpoint": checkpoint,
        "reference": reference,
        "samples_per_prompt": config.rollout.samples,
        "sources": [_facts(*pair) for pair in measured],
        "signals": signals,
        "config": config.to_dict(),
    }
    (out / "summary.json").write_text(json.dumps(plain(summary), indent=1) + "\n")
    (out / "summary.md").write_text(to_markdown(summary), encoding="utf-8")
    draw(measured, signals).savefig(out / "score.png", dpi=160, facecolor="white")
    return summary


def check_of(config: RunConfig, checkpoint: str) -> Check:
    """Whether records can be encoded for a policy, named as `load_snapshots` names it."""
    return record_check(
        config, lambda: contextlib.nullcontext(directory_of(place(config, checkpoint)[0]))
    )


def read_sources(
    config: RunConfig,
    names: Iterable[str],
    split: str,
    limit: int = 0,
    *,
    check: Check | None = None,
    out_of_distribution: bool = False,
) -> list[Source]:
    """Sources as in a config's tasks, or the names of its tasks.

    Args:
      check: how their records are looked at.
    """
    sources = []
    for name in names:
        if name in config.tasks or name in (*config.sequence, *config.evaluation.tasks):
            records = load_split(config, name, split, check)
        else:
            records = read_source(name, config, split=split, task=short_name(name), check=check)
        chosen = records[:limit] if limit else records
        sources.append(Source(short_name(name), chosen, out_of_distribution))
    return sources


def short_name(source: str) -> str:
    """What a source is called: its task, of `digits:TASK` or `tfds:name/split`, or its file."""
    _, colon, rest = source.partition(":")
    return rest if colon else pathlib.Path(source).stem


def told_apart(sources: Sequence[Source], names: Sequence[str]) -> list[Source]:
    """Those that would be called alike are called as they were named.

    Raises:
      ValueError: the same source twice.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"sources named twice: {twice}; give each once")
    counts = Counter(source.name for source in sources)
    return [
        source._replace(name=name) if counts[source.name] > 1 else source
        for source, name in zip(sources, names, strict=True)
    ]


# ------------------------------------------------------------------------------ numbers


def summarise(measured: Measured) -> list[Row]:
    """Every signal, for every question, in and out of distribution and in each source."""
    scopes = {
        "in": [samples for source, samples in measured if not source.out_of_distribution],
        "out": [samples for source, samples in measured if source.out_of_distribution],
        **{f"source:{source.name}": [samples] for source, samples in measured},
    }
    rows = []
    for scope, parts in scopes.items():
        if not parts:
            continue
        ported = _joined(parts, "reference", "ported")
        correct = _joined(parts, "trained", "accuracy")
        for sampler in SAMPLERS:
            for kind in KINDS:
                for level in LEVELS:
                    signal = _joined(parts, sampler, f"rp/{kind}/{level}")
                    own, outcome = (
                        ("correct", correct) if sampler == "trained" else ("ported_sample", ported)
                    )
                    mean = _mean(signal)[:, None]
                    for question, found in (
                        ("ported", reliability(mean, ported)),
                        (own, reliability(signal, outcome)),
                    ):
                        rows.append(Row(question, scope, sampler, kind, level, *found))
    return rows


def _joined(parts: Sequence[Mapping[str, Samples]], sampler: str, column: str) -> np.ndarray:
    return np.concatenate([part[sampler].columns[column] for part in parts])


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row's finite values; NaN where there is none."""
    finite = np.isfinite(values)
    total, count = np.where(finite, values, 0).sum(1), finite.sum(1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _facts(source: Source, samples: Mapping[str, Samples]) -> dict[str, Any]:
    trained, reference = (samples[name].columns for name in SAMPLERS)
    return {
        "name": source.name,
        "out_of_distribution": source.out_of_distribution,
        "prompts": len(source.records),
        "accuracy_trained": trained["accuracy"].mean(),
        "accuracy_reference": reference["accuracy"].mean(),
        "ported": reference["ported"].mean(),
        "kl": trained["kl"].mean(),
        **{n: _mean(v.reshape(1, -1))[0] for n, v in trained.items() if n.startswith("rp/")},
    }


# ------------------------------------------------------------------------------ files


def to_table(measured: Measured) -> pa.Table:
    """One row per sample of either policy; `ported` is null where the trained policy sampled."""
    tables = []
    for source, samples in measured:
        for sampler, drawn in samples.items():
            records = [
                r for r, group in zip(source.records, drawn.texts, strict=True) for _ in group
            ]
            columns = {
                "source": [source.name] * len(records),
                "out_of_distribution": [source.out_of_distribution] * len(records),
                "sampler": [sampler] * len(records),
                "record_id": [record.id for record in records],
                "prompt": [record.prompt for record in records],
                "gold": [record.answer for record in records],
                "completion": [text for group in drawn.texts for text in group],
                "continuation": [t for group in drawn.continuations or () for t in group]
                or pa.nulls(len(records), pa.string()),
            }
            numbers = {name: values.reshape(-1) for name, values in drawn.columns.items()}
            tables.append(
                pa.table(columns | {"ported": pa.nulls(len(records), pa.float64())} | numbers)
            )
    return pa.concat_tables(tables, promote_options="permissive")


def to_markdown(summary: Mapping[str, Any]) -> str:
    lines = [
        f"# Signals of portability: {summary['checkpoint']} against {summary['reference']}",
        "",
        f"{summary['samples_per_prompt']} samples of each policy per prompt. Accuracy of the "
        "trained policy and of the reference, the policy before it; `ported`: the reference's "
        "reasoning, continued by the trained policy, is right (%). KL in nats per token.",
        "",
        "| data | distribution | prompts | trained | reference | ported | KL |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for f in summary["sources"]:
        percents = (f["accuracy_trained"], f["accuracy_reference"], f["ported"])
        numbers = " | ".join(f"{100 * value:.1f}" for value in percents)
        side = "out" if f["out_of_distribution"] else "in"
        lines.append(f"| {f['name']} | {side} | {f['prompts']} | {numbers} | {f['kl']:.3f} |")
    lines += [
        "",
        "Below, `confidence` is exp(mean log π_ref), `ratio` exp(mean of log π_ref − log π_θ), "
        "over the tokens of the level, of samples of the trained or of the reference policy. AUROC "
        f"and Spearman's ρ with 95 % bootstrap intervals over prompts; {DASH}: not defined (one "
        "class only, or a constant signal). In and out of distribution pool their data sets, also "
        "where these differ in how much is right; the last columns are each data set's own.",
    ]
    for question, meaning in QUESTIONS.items():
        rows = [row for row in summary["signals"] if row["question"] == question]
        lines += ["", f"## {meaning[0].upper()}{meaning[1:]}", "", *_signal_table(rows)]
    return "\n".join(lines) + "\n"


def _signal_table(rows: list[dict]) -> list[str]:
    scopes = list(dict.fromkeys(row["scope"] for row in rows))
    sides = [scope for scope in scopes if scope in SCOPES]
    sources = [scope for scope in scopes if scope not in SCOPES]
    prompts = {row["scope"]: max(row["prompts"], 0) for row in rows}
    header = [f"{m}, {side} (n = {prompts[side]})" for m in ("AUROC", "ρ") for side in sides]
    header += [f"AUROC {source.removeprefix('source:')}" for source in sources]
    lines = ["| samples | kind | level | " + " | ".join(header) + " |"]
    lines.append("|---|---|---|" + "---:|" * len(header))
    cells: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        cells.setdefault((row["samples"], row["kind"], row["level"]), {})[row["scope"]] = row
    for names, by_scope in cells.items():
        values = [_interval(by_scope[s][m]) for m in ("auroc", "spearman") for s in sides]
        values += [_number(by_scope[source]["auroc"].value) for source in sources]
        lines.append(f"| {' | '.join((*names, *values))} |")
    return lines


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if np.isfinite(value) else DASH


def _interval(estimate: Estimate) -> str:
    value, low, high = map(_number, estimate)
    return value if DASH in (value, low) else f"{value} [{low}, {high}]"


# ------------------------------------------------------------------------------ picture

_COLOURS = {"in": plots.ACCENT, "out": plots.SECOND}
_OWN = {  # what a sample's own signal is compared with
    "trained": ("correct", "this sample is right"),
    "reference": ("ported_sample", "this reasoning, continued by trained, is right"),
}


def draw(measured: Measured, signals: Sequence[Mapping[str, Any]]) -> Figure:
    """A column per kind of RP and sampler. Rows: AUROC for `ported` of a prompt's mean; AUROC of
    each sample's own signal; how often samples of low to high RP are right."""
    columns = [(sampler, kind) for sampler in SAMPLERS for kind in KINDS]
    figure = Figure(figsize=(3.1 * len(columns), 7.6), layout="constrained")
    axes = figure.subplots(3, len(columns), sharey="row")
    sides = [side for side in SCOPES if any(row["scope"] == side for row in signals)]
    for (sampler, kind), (above, middle, below) in zip(columns, axes.T, strict=True):
        own, what = _OWN[sampler]
        rows = [row for row in signals if (row["samples"], row["kind"]) == (sampler, kind)]
        _bars(above, [row for row in rows if row["question"] == "ported"], sides)
        _bars(middle, [row for row in rows if row["question"] == own], sides)
        _fifths(below, measured, sampler, f"rp/{kind}/reasoning", sides)
        above.set_title(f"{kind} on the {sampler} policy's samples", fontsize=9, color=plots.INK)
        middle.set_title(what, fontsize=8, color=plots.MUTED)
        below.set_xlabel(f"{kind} of the reasoning")
        below.set_title(what, fontsize=8, color=plots.MUTED)
    axes[0, 0].set_ylabel(
        "AUROC of a prompt's mean for:\nreference's reasoning, continued\nby trained, is right"
    )
    axes[1, 0].set_ylabel("AUROC of a sample's own signal")
    axes[2, 0].set_ylabel("right, % of each fifth\nof the samples")
    for ax in axes[:, 0]:
        ax.yaxis.label.set(color=plots.INK, fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def _bars(ax, rows: Sequence[Mapping[str, Any]], sides: Sequence[str]) -> None:
    plots.style(ax)
    width = 0.36
    for i, side in enumerate(sides):
        found = {row["level"]: row["auroc"] for row in rows if row["scope"] == side}
        at = np.arange(len(LEVELS)) + (i - (len(sides) - 1) / 2) * width
        value, low, high = np.array([found[level] for level in LEVELS], float).T
        colour, label = _COLOURS[side], SCOPES[side]
        ax.bar(at, value - 0.5, width * 0.92, bottom=0.5, color=colour, alpha=0.85, label=label)
        ax.vlines(at, low, high, color=plots.INK, lw=1.2)
    ax.axhline(0.5, color=plots.MUTED, lw=1)
    ax.set_ylim(0, 1)
    ax.set_xticks(range(len(LEVELS)), LEVELS)


def _fifths(ax, measured: Measured, sampler: str, column: str, sides: Sequence[str]) -> None:
    plots.style(ax)
    outcome = "accuracy" if sampler == "trained" else "ported"
    for side in sides:
        parts = [s for source, s in measured if source.out_of_distribution == (side == "out")]
        signal, right = (_joined(parts, sampler, name).reshape(-1) for name in (column, outcome))
        known = np.isfinite(signal)
        signal, right = signal[known], right[known]
        order = np.argsort(signal, kind="stable")
        groups = [group for group in np.array_split(order, 5) if len(group)]
        x = [signal[group].mean() for group in groups]
        y = [100 * right[group].mean() for group in groups]
        ax.plot(x, y, "-o", color=_COLOURS[side], lw=1.7, ms=4, mew=0)
    ax.set_ylim(0, 100)
