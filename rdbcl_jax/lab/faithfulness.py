"""The gate: is a model's reasoning load-bearing? To pass before methods are compared on a suite.

Where answers do not hang on the trace, a comparison of methods that treat reasoning says nothing
about reasoning. So a built-in task's traces are tampered with, and the model goes on from there:

| check | what is done to the trace | passes if |
|---|---|---|
| zero-shot | nothing; of the base model only | accuracy in a range: not too hard, not done |
| force DECISION | its first steps, then another decision than the right one | the answer follows |
| corrupt | a state in the middle is overwritten | the answer follows |
| last | the last state is overwritten | the answer follows |
| foreign | it is the right one of another record | accuracy as low as coincidence makes it |
| answer only | decisions, no states; after SFT on right answers | accuracy stays low |

An answer *follows* if it is what the suite's own rules give for the tampered trace, all decisions
taken as the response names them. Counted are the responses where that differs from the answer of
the trace left alone. Decoding is greedy, on validation records, by one process.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.tasks import suite_of
from rdbcl_jax.models.interface import Params
from rdbcl_jax.policy import Policy, load_policy
from rdbcl_jax.rewards.response_format import Parsed, parse
from rdbcl_jax.rewards.verifiers import get_verifier
from rdbcl_jax.rollout.generate import continued
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.toy.base import make_base
from rdbcl_jax.training.supervised import fine_tune


@dataclasses.dataclass(frozen=True)
class Check:
    """One number of one task, and the range in which it passes."""

    task: str
    name: str
    value: float  # a fraction; NaN where nothing could be counted
    count: int
    low: float
    high: float

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high


@dataclasses.dataclass(frozen=True)
class Probe:
    """A record, the beginning of a response to it, and what was overwritten there.

    `decision` names the field of the procedure that was forced, and `plain` its value before.
    """

    record: Record
    prefix: str = ""
    changes: dict[int, int] = dataclasses.field(default_factory=dict)
    decision: str = ""
    plain: str = ""


# ---------------------------------------------------------------------- the checks of a model


def gate(
    policy: Policy, params: Params, config: ConfigDict, *, zero_shot: bool = False
) -> list[Check]:
    """Every check of every task of `config.sequence`, with the thresholds of `config.gate`.

    Args:
      zero_shot: also check that the accuracy of a plain greedy response is in its range.
    Raises:
      ValueError: a task that is not built in; only of those the traces are known.
    """
    checks = []
    for task in config.sequence:
        checks += _gate_task(policy, params, config, task, zero_shot)
    if config.gate.answer_only_steps:
        checks += _answer_only(policy, params, config)
    return checks


def _gate_task(policy, params, config, task: str, zero_shot: bool) -> list[Check]:
    options, suite = config.gate, suite_of(task)
    records = suite.make_records(task, "validation", options.records, config.data.seed)
    rng = np.random.default_rng([options.records, config.data.seed])
    probes = {f"force {d}": _force(records, d, rng) for d in _decisions(suite)}
    probes["corrupt"] = [_overwrite(record, False, rng) for record in records]
    probes["last"] = [_overwrite(record, True, rng) for record in records]
    checks = []
    if zero_shot:
        texts = respond(policy, params, records, [""] * len(records), config)
        right = [_correct(r, parse(t)) for r, t in zip(records, texts, strict=True)]
        checks.append(Check(task, "zero-shot", *_mean(right), *options.zero_shot))
    for name, made in probes.items():
        texts = respond(policy, params, records, [probe.prefix for probe in made], config)
        found = [follows(p, t) for p, t in zip(made, texts, strict=True)]
        low = options.follow_decision if name.startswith("force") else options.follow_state
        checks.append(Check(task, name, *_mean([f for f in found if f is not None]), low, 1.0))
    return [*checks, _foreign(policy, params, config, records)]


def _decisions(suite) -> list[str]:
    return [field.name for field in dataclasses.fields(suite.Procedure)]


def _force(records: Sequence[Record], decision: str, rng) -> list[Probe]:
    """The right trace up to a decision, then another option in its place."""
    probes = []
    for record in records:
        suite = suite_of(record.task)
        right = suite.verified(record)
        plain = getattr(right, decision)
        others = [o for o in suite.OPTIONS[decision] if o != plain]
        forced = dataclasses.replace(right, **{decision: others[rng.integers(len(others))]})
        pair = [suite.make_trace(record, p).split() for p in (right, forced)]
        words = pair[1][: 1 + next(i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b)]
        probes.append(Probe(record, " ".join(words), decision=decision, plain=plain))
    return probes


def _overwrite(record: Record, last: bool, rng) -> Probe:
    """The right trace up to and with a state that is wrong."""
    suite = suite_of(record.task)
    changes, length = suite.mistake(record, suite.verified(record), last, rng)
    words = suite.make_trace(record, changes=changes).split()[:length]
    return Probe(record, " ".join(words), changes)


def follows(probe: Probe, text: str) -> bool | None:
    """Whether the response's answer is that of its trace, tampered with as it was.

    None where the rules give the same answer as without tampering, so that nothing can be told.
    """
    suite = suite_of(probe.record.task)
    parsed = parse(text)
    procedure = suite.named_procedure(parsed.reasoning)
    if procedure is None:
        return False
    plain = procedure
    if probe.decision:
        plain = dataclasses.replace(procedure, **{probe.decision: probe.plain})
    expected = suite.make_trace(probe.record, procedure, probe.changes)
    if parse(expected).answer == parse(suite.make_trace(probe.record, plain)).answer:
        return None
    return parsed.answer == parse(expected).answer


def _foreign(policy, params, config, records: Sequence[Record]) -> Check:
    """Accuracy with the trace of the record before, less what coincidence alone gives."""
    suite = suite_of(records[0].task)
    others = [records[-1], *records[:-1]]
    traces = [suite.make_trace(other).split("</think>")[0] + "</think>" for other in others]
    texts = respond(policy, params, records, traces, config)
    right = [_correct(r, parse(t)) for r, t in zip(records, texts, strict=True)]
    chance = [_correct(r, Parsed("", o.answer, True)) for r, o in zip(records, others, strict=True)]
    excess = float(np.mean(right) - np.mean(chance))
    return Check(records[0].task, "foreign", excess, len(records), -1.0, config.gate.foreign_excess)


# ---------------------------------------------------------------------- answers without a trace


class _AnswersOnly:
    """Demonstrations of the right answers: the trace holds its decisions, but no states."""

    def __init__(self, tasks: Sequence[str], count: int, seed: int):
        self.tasks, self.count, self.seed = tuple(tasks), count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Record, str]:
        task = self.tasks[index % len(self.tasks)]
        record = suite_of(task).make_record(task, "train", index, self.seed)
        return record, f"{_bare(record)} <answer> {record.answer} </answer>"


def _bare(record: Record) -> str:
    decisions = dataclasses.astuple(suite_of(record.task).verified(record))
    return " ".join(("<think>", *decisions, "</think>"))


def _answer_only(policy, params, config) -> list[Check]:
    """Accuracy of a model taught to answer at once: how far perception alone goes."""
    options = config.base.copy_and_resolve_references()
    options.steps = config.gate.answer_only_steps
    source = _AnswersOnly(config.sequence, options.steps * options.batch_size, options.seed)
    params = fine_tune(
        policy,
        params,
        source,
        options,
        chunk_size=config.training.chunk_size,
        seed=options.seed,
        threads=config.data.threads,
    )
    checks = []
    for task in config.sequence:
        records = suite_of(task).make_records(
            task, "validation", config.gate.records, config.data.seed
        )
        texts = respond(policy, params, records, [_bare(record) for record in records], config)
        right = [_correct(r, parse(t)) for r, t in zip(records, texts, strict=True)]
        checks.append(Check(task, "answer only", *_mean(right), 0.0, config.gate.answer_only))
    return checks


# ---------------------------------------------------------------------- pieces


def respond(
    policy: Policy,
    params: Params,
    records: Sequence[Record],
    prefixes: Sequence[str],
    config: ConfigDict,
) -> list[str]:
    """Greedy responses, each from its prefix on; the prefix is part of what is returned."""
    return continued(
        policy,
        policy.whole(params),
        records,
        prefixes,
        sampling_of(policy, config.rollout, greedy=True),
        jax.random.key(0),  # greedy: never drawn from
        batch_size=config.evaluation.batch_size,
    )


def _correct(record: Record, parsed: Parsed) -> bool:
    return get_verifier(record.verifier).score(parsed.answer, record.answer) == 1


def _mean(found: Sequence[bool]) -> tuple[float, int]:
    return (float(np.mean(found)) if found else float("nan")), len(found)


# ---------------------------------------------------------------------- the command


def run_gate(
    config: ConfigDict,
    workdir: str | pathlib.Path | None = None,
    checkpoint: str | pathlib.Path | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, list[Check]]:
    """Gates a checkpoint directory, or a workdir: its base model (made, if there is none) and the
    policy after its last finished task. Returns the checks of each, by its name.

    Raises:
      ValueError: not exactly one of the two given; a task that is not built in.
    """
    if (workdir is None) == (checkpoint is None):
        raise ValueError("give either a workdir or a checkpoint directory")
    for task in config.sequence:
        suite_of(task)
    mesh = make_mesh(**config.mesh)
    config = config.copy_and_resolve_references()
    if checkpoint is None:
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        base = config.model.path or make_base(config, workdir / "base", mesh, on_step)
    config.model.path = str(checkpoint or base)
    policy, params = load_policy(config, mesh)
    found = {"base": gate(policy, params, config, zero_shot=True)}
    done = [int(p.name[5:]) for p in sorted((workdir or pathlib.Path()).glob("checkpoints/task_*"))]
    if workdir is not None and done:
        params = Checkpoints(workdir).restore_task(done[-1], params)
        found[f"after task {done[-1]}"] = gate(policy, params, config)
    return found


def passed(found: dict[str, list[Check]]) -> bool:
    """Whether every check of every model passed."""
    return all(check.passed for checks in found.values() for check in checks)


def write(found: dict[str, list[Check]], folder: str | pathlib.Path) -> None:
    """Writes gate.md and gate.json."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gate.md").write_text(to_markdown(found))
    (folder / "gate.json").write_text(json.dumps(to_json(found), indent=2) + "\n")


def to_json(found: dict[str, list[Check]]) -> dict[str, Any]:
    return {
        "passed": passed(found),
        "models": {
            model: [{**dataclasses.asdict(c), "passed": c.passed} for c in checks]
            for model, checks in found.items()
        },
    }


def to_markdown(found: dict[str, list[Check]]) -> str:
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
