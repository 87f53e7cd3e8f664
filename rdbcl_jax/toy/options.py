"""What the tiny base model is made by; read only where `model.path` is empty."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rdbcl_jax.config import OptimizerConfig
from rdbcl_jax.sections import Count, Natural, Section, Seed, Share, section

MUON = OptimizerConfig(
    name="muon", learning_rate=8e-3, adam_learning_rate=3e-3, schedule="tail", warmup_steps=20
)


@section("base")
@dataclasses.dataclass(frozen=True)
class BaseOptions(Section):
    """The tiny base model and its supervised fine-tuning.

    Attributes:
      model_type: its family, by a model type that has a tiny model ("qwen2_5_vl", "smolvlm", …).
      suite: the suite whose tasks it is taught: "digits", "forks", "forks_checked", "puzzles",
        "easy_vqa_traced".
      seed: of its weights and its demonstrations.
      steps, batch_size: of the fine-tuning; no steps: the weights stay random.
      size: fields of the family's `TinySize` that differ from its defaults.
      formatted: share of demonstrations in the response format; others lack its tags.
      follow: probability that a demonstration takes the decision that its cue names.
      optimizer: of the fine-tuning.
    """

    model_type: str = "qwen2_5_vl"
    suite: str = "digits"
    seed: Seed = 0
    steps: Natural = 600
    batch_size: Count = 64
    size: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    formatted: Share = 1.0
    follow: Share = 0.8
    optimizer: OptimizerConfig = MUON
