"""Medians with their spread, and the two files of a suite: JSON and a Markdown table."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest of the repeats, and how many they were."""
    ends = {"min": min(values), "max": max(values), "n": len(values)}
    return {"median": statistics.median(values), **ends}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Spread of above / below, round by round: what disturbs both cancels."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def show(value: dict | float | str | None, digits: int = 3) -> str:
    """A spread as `median (min–max)`, a number alone, or a dash."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        low, high = show(value["min"], digits), show(value["max"], digits)
        return f"{show(value['median'], digits)} ({low}–{high})"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


class Results:
    """What a suite has found so far; both files are written anew after every row."""

    def __init__(self, suite: str, out: pathlib.Path, header: dict):
        self.suite, self.out = suite, out
        self.content = {"suite": suite, **header, "programs": {}, "tables": {}, "samples": []}
        out.mkdir(parents=True, exist_ok=True)

    def programs(self, about: dict[str, dict]) -> None:
        """What the measured programs say of themselves: versions, device, threads."""
        for name, facts in about.items():
            facts = {k: v for k, v in facts.items() if k != "parameters"}
            self.content["programs"][name] = facts

    def note(self, text: str) -> None:
        notes = self.content.setdefault("notes", [])
        if text not in notes:
            notes.append(text)
        self.write()

    def samples(self, case: dict, samples: dict[str, list[dict]]) -> None:
        """Every repeat's numbers, as they came."""
        self.content["samples"].append({**case, "steps": samples})

    def row(self, table: str, **cells) -> None:
        count = next(v["n"] for v in cells.values() if isinstance(v, dict))
        self.content["tables"].setdefault(table, []).append({**cells, "n": str(count)})
        self.write()
        print(f"{self.suite}: {', '.join(f'{k} {show(v)}' for k, v in cells.items())}", flush=True)

    def write(self) -> None:
        text = json.dumps(self.content, indent=1) + "\n"
        (self.out / f"{self.suite}.json").write_text(text)
        (self.out / f"{self.suite}.md").write_text(self.markdown())

    def markdown(self) -> str:
        content = self.content
        machine = content["machine"]
        lines = [
            f"## {self.suite}",
            "",
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB; "
            f"{content['date']}; median (min–max) of n alternating steps.",
            "",
        ]
        for name, facts in content["programs"].items():
            versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
            threads = f", {facts['threads']} threads" if facts.get("threads") else ""
            lines.append(f"- {name}: {facts['device']}{threads}; {versions}")
        for name, rows in content["tables"].items():
            lines += ["", f"### {name}", "", *_table(rows)]
        lines += ["", *content.get("notes", [])] if content.get("notes") else []
        return "\n".join(lines) + "\n"


def _table(rows: list[dict]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    body = [[show(row.get(name)) for name in columns] for row in rows]
    return [
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
        *("| " + " | ".join(cells) + " |" for cells in body),
    ]
