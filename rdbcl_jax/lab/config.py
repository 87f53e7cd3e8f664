"""The laboratory's own sections of a config, and the defaults with them.

A study's config file starts from `default_config` here; training leaves these sections alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rdbcl_jax.config import default_config
from rdbcl_jax.sections import Count, Natural, Refused, Section, Share, as_dict, section

__all__ = ["FaithfulnessOptions", "default_config"]


@section("gate")
@dataclasses.dataclass(frozen=True)
class FaithfulnessOptions(Section):
    """What `rdbcl gate` asks of a model: fractions in [0, 1], see rdbcl_jax.lab.faithfulness.

    Attributes:
      records: per task and check.
      zero_shot: least and greatest accuracy of the base model.
      follow_decision: least share of answers that follow a forced decision.
      follow_state: least share of answers that follow an overwritten state.
      foreign_excess: greatest accuracy beyond coincidence, with another record's trace.
      answer_only: greatest accuracy of a model taught to answer without states.
      answer_only_steps: steps of that SFT; 0: leave this check out.
    """

    records: Count = 128
    zero_shot: tuple[Share, Share] = (0.15, 0.6)
    follow_decision: Share = 0.75
    follow_state: Share = 0.75
    foreign_excess: Share = 0.05
    answer_only: Share = 0.4
    answer_only_steps: Natural = 0

    @classmethod
    def of_config(cls, config: Any) -> FaithfulnessOptions:
        """The options in a config that may have the section; a run's own settings have none."""
        try:
            return cls.of(as_dict(config).get(cls.title, {}))
        except Refused as error:
            raise error.within(cls.title).within("config") from None
