"""Sizes of batches, where a config leaves them to the data: few, so that few programs are compiled,
and the same again where records are added."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from rdbcl_jax.batches import measured
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.check import SIZES, Check
from rdbcl_jax.data.indexed import Records
from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.waiting import in_threads, shown

# blocks of attention kernels are as wide
_LEAST = {"prompt_lengths": 128, "patch_slots": 128, "images_per_prompt": 1}


def rung(size: int, least: int) -> int:
    """The smallest of `least` times 1, 2, 3, 4, 6, 8, 12, … that holds a size: of a batch padded to
    it at least a half is used, two thirds beyond the first step."""
    power = least
    while power < size:
        if power > least and power + power // 2 >= size:
            return power + power // 2
        power *= 2
    return power


def chosen_sizes(
    names: Iterable[str],
    parts: Sequence[Sequence[Record]],
    encoder: Callable[[], PromptEncoder],
) -> dict[str, tuple[int, ...]]:
    """The rungs that records need, in order; batches take the smallest that holds all of theirs.

    Args:
      names: of `SIZES`, those to be chosen.
      parts: records; those of a source were measured when they were looked at.
      encoder: measures the others.
    Raises:
      ValueError: records that were looked at without being measured.
    """
    names = [*names]
    found: dict[str, set[int]] = {name: set() for name in names}
    for records in parts:
        for name, needs in _needs(records, names, encoder).items():
            found[name] |= {rung(need, _LEAST[name]) for need in needs}
    return {name: tuple(sorted(rungs)) for name, rungs in found.items()}


def with_sizes(config: RunConfig, parts: Sequence[Sequence[Record]], check: Check) -> RunConfig:
    """The config with the sizes of batches that it leaves to the data; `check` is how records of
    files were looked at."""
    missing = [name for name in SIZES if not getattr(config.data, name)]
    if not missing:
        return config
    assert check.encoder, "what reads prompts has a model"
    sizes = chosen_sizes(missing, parts, check.encoder)
    return config.changed({f"data.{name}": found for name, found in sizes.items()})


def _needs(
    records: Sequence[Record], names: Sequence[str], encoder: Callable[[], PromptEncoder]
) -> Mapping[str, Iterable[int]]:
    if isinstance(records, Records):
        needs = records.facts.needs if records.facts else {}
        for name in names:
            if name not in needs:
                raise ValueError(
                    f"config.data.{name} is empty, to be chosen from the data, and prompts are not "
                    'measured with config.data.check = "headers"; expected its sizes, or "full"'
                )
        return {name: needs[name] for name in names}
    if names == ["images_per_prompt"]:
        return {name: [len(record.images) for record in records] for name in names}
    encode = encoder()

    def sizes(record: Record) -> dict[str, int]:
        with measured() as found:
            encode.encode([record])
        return found

    what = f"measuring {records[0].task!r}" if len(records) else ""
    measures = [*shown(in_threads(sizes, records), len(records), what)]
    return {name: [found.get(name, 0) for found in measures] for name in names}
