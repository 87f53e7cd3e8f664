"""What `rdbcl check` does: every record of a config's tasks, or of some sources, read as a run
would, and all that is wrong with them."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.check import Check
from rdbcl_jax.data.indexed import Records
from rdbcl_jax.data.layouts import layout_of
from rdbcl_jax.data.pictures import Stored
from rdbcl_jax.data.tasks import (
    EVALUATED,
    SPLITS,
    TaskData,
    load_split,
    read_source,
    shared_records,
)
from rdbcl_jax.training.setup import record_check

_LOOKED_AT = 1000  # records of a source whose pictures' places are looked at


@dataclasses.dataclass
class Checked:
    """What was found.

    Attributes:
      counts: good records, by "task/split" or source.
      problems: what is wrong with the others, each in one line.
      notes: what is odd, and no error.
    """

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def load(self, name: str, load: functools.partial) -> Sequence[Any]:
        """The records that `load` finds, which are counted; none where it raises."""
        left_out: list[str] = []
        try:
            records = load(left_out=left_out)
        except (ValueError, OSError, ImportError) as error:
            records = []
            left_out.append(str(error))
        self.problems = [*dict.fromkeys([*self.problems, *left_out])]
        if isinstance(records, Records):  # those of suites are not read
            self.counts[name] = len(records)
        return records


def check_all(
    config: RunConfig | Mapping[str, Any] | None,
    sources: Sequence[str] = (),
    format: str | Mapping[str, Any] = "",
) -> Checked:
    """Reads all files of a config's tasks, or the given sources instead.

    Args:
      config: says what tokenizer, processor and sizes records must fit; None: images are decoded,
        wherever they are, and prompts and answers are read.
      sources: as `rdbcl_jax.data.sources.open_source` takes them.
      format: their layout, as a task's `format` names or describes it.
    """
    check = Check() if config is None else record_check(RunConfig.of(config))
    changed: dict[str, Any] = {"data.on_bad_record": "skip"}
    changed |= {f"data.{split}_count": 1 for split in SPLITS}  # records of suites are not read
    if config is None:
        changed["data.image_root"] = "/"
    run, found = RunConfig.of(config or {}).changed(changed), Checked()
    if sources:
        layout = layout_of(format)
        read = functools.partial(read_source, config=run, split="train", layout=layout, check=check)
        for source in sources:
            records = found.load(source, functools.partial(read, source, task=source))
            if config is None:
                found.notes += _elsewhere(source, records)
        return found
    for names, splits in ((run.sequence, SPLITS), (run.evaluation.tasks, EVALUATED)):
        for name in names:
            of_task = functools.partial(load_split, run, name, check=check)
            task = {
                split: found.load(f"{name}/{split}", functools.partial(of_task, split=split))
                for split in splits
            }
            found.notes += shared_records(TaskData(name, **{s: task.get(s, []) for s in SPLITS}))
    return found


def _elsewhere(source: str, records: Sequence[Any]) -> list[str]:
    """Where pictures lie that a run would not read without being told."""
    folders: set[str] = set()
    for record in records[:_LOOKED_AT]:
        files = [image.path if isinstance(image, Stored) else image for image in record.images]
        places = [file.resolve() for file in files if isinstance(file, Path)]
        own = Path(record.where.rpartition(", ")[0]).resolve().parent
        folders |= {str(place.parent) for place in places if not place.is_relative_to(own)}
    if not folders:
        return []
    root = os.path.commonpath([*folders])
    return [f"{source}: pictures lie in {root}; a run is to name it, as config.data.image_root"]
