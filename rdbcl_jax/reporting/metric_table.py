"""Every metric, described once: what tables, pictures, tooltips and the progress line say of it.

A metric that is not here is shown under its own name. To show one, add a line: `places` says where.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import TypedDict


class Place(enum.Flag):
    """Where a metric is shown, besides the tables that show all of its kind."""

    NOWHERE = 0
    TILE = enum.auto()  # the large numbers of a report
    CURVE = enum.auto()  # a study's pictures of a swept field
    LEARNING = enum.auto()  # a report's curves of each task
    HEALTH = enum.auto()  # a report's panels over the whole run
    PROGRESS = enum.auto()  # the line of a run's progress display


@dataclasses.dataclass(frozen=True)
class Metric:
    """
    Attributes:
      label: the short name, of columns.
      title: a longer one, of pictures.
      note: what a reader should know at a glance.
      definition: a sentence; of metrics of the accuracy matrix.
      unit: of the values as shown, that is times `scale`.
      signed: a difference, shown with its sign.
      less: it is better where it is lower.
      log_scale: its axis is logarithmic.
      cut_peaks: rare peaks are left out of its picture.
      digits: after the decimal point, where it is one number.
    """

    label: str
    title: str = ""
    note: str = ""
    definition: str = ""
    unit: str = ""
    scale: float = 1.0
    signed: bool = False
    less: bool = False
    log_scale: bool = False
    cut_peaks: bool = False
    digits: int = 3
    places: Place = Place.NOWHERE

    @property
    def heading(self) -> str:
        """Of a picture: the title, else the label."""
        return self.title or self.label

    @property
    def axis(self) -> str:
        """The heading and the unit."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading

    @property
    def caption(self) -> str:
        """The unit and the note."""
        return "; ".join(part for part in (self.unit, self.note) if part)


class _Percent(TypedDict):
    unit: str
    scale: float
    digits: int


PERCENT: _Percent = {"unit": "%", "scale": 100.0, "digits": 1}

CONTINUAL = {  # of the accuracy matrix, shown in this order; `rdbcl_jax.core.continual_metrics`
    "last": Metric(
        "Last",
        definition="Mean accuracy over all tasks after the last one.",
        places=Place.TILE | Place.CURVE,
        **PERCENT,
    ),
    "avg_seen": Metric(
        "Avg (seen)",
        note="over tasks seen so far",
        definition="After each task, mean accuracy over the tasks seen so far; then the mean.",
        places=Place.TILE,
        **PERCENT,
    ),
    "avg_all": Metric(
        "Avg (all)",
        definition="After each task, mean accuracy over all tasks, unseen ones too; then the mean.",
        **PERCENT,
    ),
    "mft": Metric(
        "just trained",
        title="just trained (plasticity)",
        definition="Mean accuracy on each task just after its own training (plasticity).",
        places=Place.CURVE,
        **PERCENT,
    ),
    "bwt": Metric(
        "BWT",
        note="backward transfer, points",
        definition="Backward transfer: final minus just-trained accuracy, averaged over all but"
        " the last task (÷ T − 1).",
        signed=True,
        places=Place.TILE,
        **PERCENT,
    ),
    "bwt_over_t": Metric(
        "BWT (÷ T)",
        definition="The same sum ÷ T, as some toolkits have it.",
        signed=True,
        **PERCENT,
    ),
    "forgetting_first": Metric(
        "forgetting (first)",
        definition="Just-trained minus final accuracy: −bwt.",
        less=True,
        **PERCENT,
    ),
    "forgetting_max": Metric(
        "forgetting (max)",
        note="from the best, points",
        definition="Best earlier minus final accuracy, averaged over all but the last task.",
        less=True,
        places=Place.TILE | Place.CURVE,
        **PERCENT,
    ),
    "transfer": Metric(
        "transfer",
        definition="Mean accuracy on tasks still to come, after each task (upper triangle).",
        **PERCENT,
    ),
    "fwt_zeroshot": Metric(
        "FWT (zero-shot)",
        definition="Forward transfer: accuracy on a task just before its training, minus the base"
        " model's.",
        signed=True,
        **PERCENT,
    ),
    "held_out_last": Metric(
        "held out, last",
        definition="Mean accuracy over the tasks that were not learned, after the last one that"
        " was.",
        places=Place.TILE,
        **PERCENT,
    ),
    "held_out_change": Metric(
        "held out, change",
        definition="The same minus the base model's: negative where they were forgotten.",
        signed=True,
        **PERCENT,
    ),
}

STUDY_COLUMNS = ("last", "avg_seen", "bwt", "forgetting_max", "mft")  # of its first table

STEP = {  # of metrics.jsonl; panels come in this order
    "reward": Metric("reward", places=Place.LEARNING | Place.PROGRESS),
    "accuracy": Metric(
        "accuracy",
        title="accuracy of the samples",
        places=Place.LEARNING | Place.PROGRESS,
        unit="%",
        scale=100.0,
    ),
    "kl": Metric(
        "KL",
        title="KL to the previous policy",
        note="starts at 0 with every task",
        unit="nats per token",
        digits=4,
        places=Place.HEALTH | Place.PROGRESS,
    ),
    "rp/mean": Metric("RP", title="Reasoning portability, mean", places=Place.PROGRESS),
    "kl_coef/mean": Metric("β", title="KL coefficient, mean", places=Place.PROGRESS),
    "entropy": Metric(
        "entropy",
        title="Entropy",
        note="a collapse ends exploration",
        unit="nats per token",
        places=Place.HEALTH,
    ),
    "completions/mean_length": Metric(
        "length", title="Response length", unit="tokens", places=Place.HEALTH
    ),
    "completions/clipped_ratio": Metric(
        "cut off",
        title="Responses cut off",
        note="share that hit the length limit",
        places=Place.HEALTH,
    ),
    "frac_reward_zero_std": Metric(
        "silent groups",
        title="Silent groups",
        note="share whose rewards are all equal: no gradient",
        places=Place.HEALTH,
    ),
    "no_signal": Metric(
        "no signal",
        title="Batches without a signal",
        note="1: all groups are silent, so no update was made",
        places=Place.HEALTH,
    ),
    "skipped_updates": Metric(
        "left out",
        title="Updates left out",
        note="in the task so far: loss or gradient not finite",
        places=Place.HEALTH,
    ),
    "parse_rate": Metric(
        "parse rate",
        title="Parse rate",
        note="share of sampled responses in the required format",
        places=Place.HEALTH,
    ),
    "policy_loss": Metric(
        "policy loss", title="Policy loss", note="near 0 by construction", places=Place.HEALTH
    ),
    "kl_loss": Metric(
        "KL loss", title="KL loss", note="KL × β, as it enters the loss", places=Place.HEALTH
    ),
    "grad_norm": Metric(
        "gradient norm", title="Gradient norm", note="before clipping", places=Place.HEALTH
    ),
    "step_time": Metric(
        "step time",
        title="Time per step",
        note="rare peaks (compilations) are cut off",
        unit="seconds",
        cut_peaks=True,
        places=Place.HEALTH,
    ),
    "sampler/logp_difference/max": Metric(
        "sampler's log-probs",
        title="Sampler's log-probs",
        note="largest difference from the update's own; rounding alone",
        unit="nats",
        log_scale=True,
        places=Place.HEALTH,
    ),
}

STUDY = {  # of a whole run, in a study's tables and pictures
    "kl_coef": Metric("kl_coef"),
    "kl_loss": Metric("kl_loss", unit="10⁻³ nats per token", scale=1e3),
    "kl": Metric("kl", unit="10⁻³ nats per token", scale=1e3),
    "step": Metric("steps", title="step of the run"),
    "sampled": Metric("sampled", title="sampled responses"),
    "tokens": Metric("tokens"),
    "seconds": Metric("minutes", scale=1 / 60),
    "learned": Metric("tokens learned", title="response tokens (dotted: generated)"),
    "generated": Metric("tokens generated"),
    "validation": Metric(
        "validation", "accuracy on validation records, mean over tasks", **PERCENT
    ),
    "new_before": Metric("new, before", **PERCENT),
    "new_after": Metric("new, after", **PERCENT),
    "old_before": Metric("old, before", **PERCENT),
    "old_after": Metric("old, after", **PERCENT),
    "forgotten": Metric("forgotten", **PERCENT),
}


def of(name: str) -> Metric:
    """A metric of the accuracy matrix or of a step; an unknown one has its name alone."""
    return CONTINUAL.get(name) or STEP.get(name) or Metric(name)


def at(place: Place) -> dict[str, Metric]:
    """All that are shown there, in order."""
    both = {**CONTINUAL, **STEP}
    return {name: metric for name, metric in both.items() if place in metric.places}


def ordered(names: Iterable[str], table: Mapping[str, Metric] = CONTINUAL) -> list[str]:
    """Each name once: in the table's order, then those that it does not have."""
    names = dict.fromkeys(names)
    return [name for name in table if name in names] + [n for n in names if n not in table]
