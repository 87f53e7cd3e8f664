"""What `rdbcl dynamics` writes: who moves whom, how surprising each training set is, a picture."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.check import Check
from rdbcl_jax.data.sizes import with_sizes
from rdbcl_jax.json_files import plain
from rdbcl_jax.lab.dynamics.measure import (
    KINDS,
    Influence,
    Texts,
    make_texts,
    measure_influence,
    perplexity,
    step_deviation,
)
from rdbcl_jax.lab.portability.measure import Source
from rdbcl_jax.lab.portability.report import check_of, read_sources, told_apart
from rdbcl_jax.reporting import plots
from rdbcl_jax.reporting.text_tables import markdown_escape
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.snapshots import Snapshot, load_snapshots

STEP = 1e-4  # ‖Δθ‖ / ‖θ‖ of the real step that checks the first-order one
MEASURES = {
    "magnitude": "Magnitude of influence, ‖Δ log π‖² / (‖A‖² ‖G‖²) per η²: the kernel's part, free "
    "of how surprising the training text is",
    "change": "Change of the predictions, ‖Δ log π‖² per probe token and η²: with that part",
    "gain": "Change of the probe texts' own log-prob, nats per token and η: below 0 they become "
    "less likely",
}


def run_dynamics(
    config: RunConfig | Mapping[str, Any],
    checkpoint: str,
    train: Sequence[str],
    probes: Sequence[str],
    out: str | pathlib.Path,
    *,
    teacher: str = "",
    limit: int = 32,
) -> dict[str, Any]:
    """Measures every pair of sets and writes dynamics.json, dynamics.md and dynamics.png.

    Args:
      checkpoint: the policy that would be trained, as `load_snapshots` names it.
      train, probes: `KIND:SOURCE`, a kind of `make_texts` and a source of `read_sources`. Of
        sources that have splits, the training sets are of `train`, the probes of `validation`: no
        text is probed by itself.
      teacher: the policy whose right samples the kind `rollout` takes.
      limit: most records of each set.
    Returns:
      The content of dynamics.json.
    """
    if not train or not probes:
        raise ValueError("give at least one --train=KIND:SOURCE and one --probe=KIND:SOURCE")
    config = RunConfig.of(config)
    names = [checkpoint, teacher] if teacher else [checkpoint]
    check = check_of(config, checkpoint)
    wanted = [
        _sets([*dict.fromkeys(group)], config, split, limit, check)
        for group, split in ((train, "train"), (probes, "validation"))
    ]
    config = with_sizes(config, [found.records for group in wanted for _, found in group], check)
    student, *others = load_snapshots(config, names, make_mesh(**config.mesh.to_dict()))
    train_sets, probe_sets = (
        [
            make_texts(kind, found.name, found.records, config, student, *others)
            for kind, found in group
        ]
        for group in wanted
    )
    rows = []
    for texts in train_sets:
        print(f"{texts.name}: {len(texts.records)} texts", flush=True)
        rows.append(_row(config, student, texts, probe_sets))
    result = {
        "checkpoint": checkpoint,
        "teacher": teacher or None,
        "step": STEP,
        "train": rows,
        "probes": [
            {"name": t.name, "texts": len(t.records), "perplexity": perplexity(config, student, t)}
            for t in probe_sets
        ],
        "config": config.to_dict(),
    }
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "dynamics.json").write_text(json.dumps(plain(result), indent=1) + "\n")
    (out / "dynamics.md").write_text(to_markdown(result), encoding="utf-8")
    draw(result).savefig(out / "dynamics.png", dpi=160, facecolor="white")
    return result


def _sets(
    names: Sequence[str], config: RunConfig, split: str, limit: int, check: Check
) -> list[tuple[str, Source]]:
    """Kinds of texts, and the records that they are made of."""
    kinds, found = zip(*(_parse(name, config, split, limit, check) for name in names), strict=True)
    return [*zip(kinds, told_apart(found, names), strict=True)]


def _parse(
    name: str, config: RunConfig, split: str, limit: int, check: Check
) -> tuple[str, Source]:
    kind, colon, source = name.partition(":")
    if not colon or not source:
        raise ValueError(f"{name!r}: expected KIND:SOURCE, such as answer:digits:sum")
    if kind not in KINDS:
        raise ValueError(f"{name!r}: its kind is {kind!r}, expected one of {KINDS}")
    (found,) = read_sources(config, [source], split, limit, check=check)
    return kind, found._replace(name=f"{kind} {found.name}")


def _row(config, student: Snapshot, train: Texts, probes: Sequence[Texts]) -> dict[str, Any]:
    found = measure_influence(config, student, train, probes)
    return {
        "name": train.name,
        "texts": len(train.records),
        "perplexity": perplexity(config, student, train),
        "example": train.responses[0],
        "influence": {p.name: _summary(f) for p, f in zip(probes, found, strict=True)},
        "step_deviation": step_deviation(config, student, train, probes[0], length=STEP),
    }


def _summary(found: Influence) -> dict[str, dict[str, float]]:
    """Means over all pairs; the standard error is that over training texts."""
    summary = {}
    for name, values in found._asdict().items():
        means = values.mean(axis=1)
        error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else np.nan
        summary[name] = {"mean": float(means.mean()), "error": float(error)}
    return summary


# ------------------------------------------------------------------------------ files


def to_markdown(result: Mapping[str, Any]) -> str:
    probes = [probe["name"] for probe in result["probes"]]
    lines = [
        f"# Learning dynamics of {result['checkpoint']}",
        "",
        "Perplexity per token under this policy, before any training (low: what it would say "
        "itself). Last column: relative difference between a real step "
        f"(‖Δθ‖ = {result['step']:g} ‖θ‖) and the first-order one, on one text of the set.",
        "",
        "| training set | texts | perplexity | first text | real step |",
        "|---|---:|---:|---|---:|",
    ]
    for row in result["train"]:
        first = markdown_escape(row["example"])
        cells = (row["name"], row["texts"], f"{row['perplexity']:.2f}", first)
        lines.append(f"| {' | '.join(map(str, cells))} | {100 * row['step_deviation']:.2g} % |")
    for measure, meaning in MEASURES.items():
        lines += ["", f"{meaning}. Mean ± standard error over training texts.", ""]
        lines.append("| training set | " + " | ".join(probes) + " |")
        lines.append("|---|" + "---:|" * len(probes))
        for row in result["train"]:
            found = (row["influence"][probe][measure] for probe in probes)
            means = (f"{f['mean']:.3g} ± {f['error']:.1g}".replace("-", "−") for f in found)
            lines.append(f"| {row['name']} | {' | '.join(means)} |")
    return "\n".join(lines) + "\n"


def draw(result: Mapping[str, Any]) -> Figure:
    """Perplexity of each training set, and what a step on it does to each probe set."""
    rows, probes = result["train"], [probe["name"] for probe in result["probes"]]
    names = [row["name"] for row in rows]
    size = (2 * (1.6 + 0.72 * max(len(probes), 4)), 2 * (0.4 * len(rows) + 1.2))
    figure = Figure(figsize=size, layout="constrained")
    (bars, magnitude), (change, gain) = figure.subplots(2, 2)
    _perplexities(bars, [row["perplexity"] for row in rows])
    bars.set_title("perplexity before training", fontsize=9, color=plots.INK)
    for ax, measure, title in (
        (magnitude, "magnitude", "magnitude of influence on …, per η²"),
        (change, "change", "change of the predictions on …, nats² per token and η²"),
        (gain, "gain", "change of the log-prob of …, nats per token and η"),
    ):
        table = np.array([[r["influence"][p][measure]["mean"] for p in probes] for r in rows])
        _heat(ax, table, probes, signed=measure == "gain")
        ax.set_title(title, fontsize=9, color=plots.INK)
    for ax, labels in zip((bars, change, magnitude, gain), (names, names, [], []), strict=True):
        ax.set_yticks(range(len(labels)), labels)
        ax.tick_params(axis="y", labelsize=9, labelcolor=plots.INK)
    return figure


def _perplexities(ax, values: Sequence[float]) -> None:
    plots.style(ax)
    ax.grid(visible=False)
    ax.barh(range(len(values)), values, color=plots.ACCENT, height=0.6)
    for i, value in enumerate(values):
        text = f" {value:,.0f}" if value >= 100 else f" {value:.3g}"
        ax.text(value, i, text, va="center", fontsize=8, color=plots.INK)
    ax.set(ylim=(len(values) - 0.5, -0.5), xscale="log", xlim=(1, 5 * max(values)))
    ax.xaxis.set_minor_locator(NullLocator())


def _heat(ax, table: np.ndarray, columns: Sequence[str], *, signed: bool) -> None:
    if signed:
        top = np.abs(table).max() or 1.0
        ax.imshow(table, cmap="RdBu", vmin=-top, vmax=top, aspect="auto", alpha=0.6)
    else:
        low = max(table.min(), table.max() * 1e-6) or 1e-12
        norm = LogNorm(low, max(table.max(), 1.01 * low))
        ax.imshow(np.maximum(table, low), cmap=plots.DENSITY, norm=norm, aspect="auto", alpha=0.8)
    for (i, j), value in np.ndenumerate(table):
        text = f"{value:+.2g}" if signed else f"{value:.2g}"
        ax.text(j, i, text.replace("-", "−"), ha="center", va="center", fontsize=8, color=plots.INK)
    ax.set_xticks(range(len(columns)), [c.replace(" ", "\n", 1) for c in columns])
    ax.tick_params(length=0, labelsize=8, colors=plots.INK)
    ax.spines[:].set_visible(False)
