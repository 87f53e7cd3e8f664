"""What the gate found, as gate.md and gate.json."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdbcl_jax.json_files import plain
from rdbcl_jax.lab.faithfulness.checks import Check

Found = Mapping[str, Sequence[Check]]  # the checks of each model, by its name


def passed(found: Found) -> bool:
    """Whether every check of every model passed."""
    return all(check.passed for checks in found.values() for check in checks)


def write(found: Found, folder: str | pathlib.Path) -> None:
    """Writes gate.md and gate.json."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gate.md").write_text(to_markdown(found))
    (folder / "gate.json").write_text(json.dumps(plain(to_json(found)), indent=2) + "\n")


def to_json(found: Found) -> dict[str, Any]:
    """`{"passed", "models": {name: [fields of a check, "passed"]}}`."""
    return {
        "passed": passed(found),
        "models": {
            model: [{**dataclasses.asdict(c), "passed": c.passed} for c in checks]
            for model, checks in found.items()
        },
    }


def to_markdown(found: Found) -> str:
    """A table per model, in %: a row per task, a column per check, failures marked by `!`."""
    return "\n".join(_table(model, checks) for model, checks in found.items())


def _table(model: str, checks: Sequence[Check]) -> str:
    names = list(dict.fromkeys(check.name for check in checks))
    tasks = list(dict.fromkeys(check.task for check in checks))
    cells = {(c.task, c.name): f"{'' if c.passed else '! '}{100 * c.value:.0f}" for c in checks}
    ranges = {c.name: f"{100 * c.low:.0f} … {100 * c.high:.0f}" for c in checks}
    rows = [
        [model, *names],
        ["---", *["---:"] * len(names)],
        *([task, *(cells.get((task, name), "") for name in names)] for task in tasks),
        ["passes", *(ranges[name] for name in names)],
    ]
    verdict = "passed" if all(c.passed for c in checks) else "FAILED"
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", f"{model}: {verdict}", ""])
