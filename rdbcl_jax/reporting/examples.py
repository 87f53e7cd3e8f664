"""Examples of responses for the report: coloured tokens, and pictures small enough for a page."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rdbcl_jax.data.pictures import decode
from rdbcl_jax.reporting.metric_table import STEP
from rdbcl_jax.reporting.numbers import fixed, significant

PER_TASK, MOST = 3, 18
MAX_SIDE, MAX_BYTES = 512, 60_000  # of a picture


@dataclasses.dataclass(frozen=True)
class Picture:
    source: str  # a data: address
    small: bool  # drawn with sharp pixels


@dataclasses.dataclass(frozen=True)
class Token:
    """`kind` is a class of the style sheet; `strength` the opacity of its colour."""

    text: str
    kind: str
    title: str = ""
    strength: str | None = None


@dataclasses.dataclass(frozen=True)
class Response:
    tokens: Sequence[Token]
    facts: Sequence[str]
    correct: bool | None


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt with its pictures, the responses that are `shown` and the group's `others`."""

    prompt: str
    facts: Sequence[str]
    shown: Sequence[Response]
    others: Sequence[Response]
    pictures: Sequence[Picture]
    unreadable: bool  # there is a picture, but it cannot be read


@dataclasses.dataclass(frozen=True)
class Examples:
    """By task. `scale`: the difference of log-probs, in nats, that has the full colour."""

    scale: float
    tasks: Mapping[str, Sequence[Example]]


def choose(tasks: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Examples | None:
    """The last prompts of each task with their responses, from the rows of examples.json; None
    where there are none."""
    by_task = {task: _by_prompt([r for r in rows if r.get("task") == task]) for task in tasks}
    by_task = {task: found for task, found in by_task.items() if found}
    if not by_task:
        return None
    each = max(1, min(PER_TASK, MOST // len(by_task)))
    shown = {task: _last(found, each) for task, found in by_task.items()}
    scale = _scale([row for found in shown.values() for group in found for row in group])
    made = {task: [_example(group, scale) for group in found] for task, found in shown.items()}
    return Examples(scale, made)


def _by_prompt(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Neighbouring rows of one record of one step are a group."""
    groups: list[list[Mapping[str, Any]]] = []
    for row in rows:
        same = groups and "sample" in row
        if same and all(groups[-1][0].get(k) == row.get(k) for k in ("step", "record_id")):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _last(groups: Sequence[Sequence[Mapping]], most: int) -> Sequence[Sequence[Mapping]]:
    """The first of the last step's, where the whole group stands."""
    newest = [group for group in groups if group[0].get("step") == groups[-1][0].get("step")]
    return newest[:most]


def _scale(rows: Sequence[Mapping]) -> float:
    ratios = [r for row in rows for r in _ratios(row) if math.isfinite(r)]
    return max(float(np.quantile(np.abs(ratios), 0.95)), 0.05) if ratios else 1.0


def _ratios(row: Mapping) -> list[float]:
    """log π_ref − log π of each token; NaN where either is missing."""
    pairs = zip(row.get("reference_logps") or [], row.get("policy_logps") or [])  # noqa: B905
    return [math.nan if r is None or p is None else r - p for r, p in pairs]


def _example(group: Sequence[Mapping], scale: float) -> Example:
    first = group[0]
    facts = [f"step {first['step']}"] if "step" in first else []
    facts += [f"record {first['record_id']}"] if first.get("record_id") is not None else []
    facts += [f"gold answer {first['gold']}"] if first.get("gold") is not None else []
    if len(group) > 1:
        facts.append(f"{sum(bool(r.get('correct')) for r in group)} of {len(group)} right")
    images = first.get("images") or ([first["image"]] if first.get("image") else [])
    pictures = [read_picture(image) for image in images]
    marks = [bool(row.get("correct")) for row in group]
    shown = {marks.index(mark) for mark in (True, False) if mark in marks}  # one of each
    responses = [_response(row, scale) for row in group]
    return Example(
        prompt=first.get("prompt", ""),
        facts=facts,
        shown=[r for i, r in enumerate(responses) if i in shown],
        others=[r for i, r in enumerate(responses) if i not in shown],
        pictures=[picture for picture in pictures if picture],
        unreadable=None in pictures,
    )


def _response(row: Mapping, scale: float) -> Response:
    facts = [
        f"{STEP[name].label} {significant(row[key])}"
        for key, name in (("reward", "reward"), ("rp", "rp/mean"), ("kl_coef", "kl_coef/mean"))
        if row.get(key) is not None
    ]
    return Response(_tokens(row, scale), facts, row.get("correct"))


def _tokens(row: Mapping, scale: float) -> list[Token]:
    tokens = row.get("tokens") or []
    spans = row.get("spans") or ["other"] * len(tokens)
    ratios = _ratios(row) or [math.nan] * len(tokens)
    logps = row.get("policy_logps") or [None] * len(tokens)
    columns = zip(tokens, spans, ratios, logps)  # noqa: B905
    return [_token(*column, scale) for column in columns]


def _token(text: str, span: str, ratio: float, logp: float | None, scale: float) -> Token:
    text = text.replace("\n", "⏎\n")
    if span not in ("reasoning", "answer"):
        return Token(text, "o")
    kinds = ["ans"] if span == "answer" else []
    if logp is None or not math.isfinite(ratio):
        return Token(text, " ".join(kinds), span)
    kinds.append("r" if ratio > 0 else "p")
    title = (
        f"{span}: log π {fixed(logp, 3)}, log π_ref {fixed(logp + ratio, 3)}, difference "
        f"{fixed(ratio, 3, signed=True)}"
    )
    return Token(text, " ".join(kinds), title, fixed(0.75 * min(abs(ratio) / scale, 1), 2))


def read_picture(data: str) -> Picture | None:
    """A base64 picture, made smaller where it is large; None where it is not a picture."""
    try:
        raw = base64.b64decode(data.split(",")[-1])
        image = decode(raw)
    except (binascii.Error, ValueError):
        return None
    small, kind = max(image.size) < 150, "PNG"
    if len(raw) > MAX_BYTES:
        kind = "JPEG"
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    text = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/{kind.lower()};base64,{text}", small)
