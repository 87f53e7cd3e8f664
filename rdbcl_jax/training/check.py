"""What `rdbcl check` does: every record of a config's tasks, or of some sources, read as a run
would, and all that is wrong with them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.check import Check
from rdbcl_jax.data.indexed import Records
from rdbcl_jax.data.layouts import layout_of
from rdbcl_jax.data.tasks import EVALUATED, SPLITS, load_split, read_source
from rdbcl_jax.training.setup import record_check


def check_all(
    config: RunConfig | Mapping[str, Any] | None,
    sources: Sequence[str] = (),
    format: str | Mapping[str, Any] = "",
) -> tuple[int, list[str]]:
    """Reads all files of a config's tasks, or the given sources instead.

    Args:
      config: says what tokenizer, processor and sizes records must fit; None: images are decoded,
        and prompts and answers are read.
      sources: as `rdbcl_jax.data.sources.open_source` takes them.
      format: their layout, as a task's `format` names it.
    Returns:
      How many records are good, and what is wrong with the others, each in one line.
    """
    check = Check() if config is None else record_check(RunConfig.of(config))
    once = {f"data.{split}_count": 1 for split in SPLITS}  # records of suites are not read
    config = RunConfig.of(config or {}).changed({"data.on_bad_record": "skip", **once})
    problems: list[str] = []
    loads = [
        functools.partial(load_split, config, name, split)
        for names, splits in ((config.sequence, SPLITS), (config.evaluation.tasks, EVALUATED))
        for name in names
        for split in splits
    ]
    if sources:
        layout = layout_of(format)
        read = functools.partial(read_source, config=config, split="train", layout=layout)
        loads = [functools.partial(read, source, task=source) for source in sources]
    found = 0
    for load in loads:
        try:
            records = load(check=check, left_out=problems)
            found += len(records) if isinstance(records, Records) else 0
        except (ValueError, OSError, ImportError) as error:
            problems.append(str(error))
    return found, [*dict.fromkeys(problems)]
