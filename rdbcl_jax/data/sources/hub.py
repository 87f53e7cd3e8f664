"""`hf:NAME[/CONFIG]:SPLIT`: data sets that the `datasets` library reads, from its cache or the hub;
NAME may be a directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rdbcl_jax.data.sources.rows import Row
from rdbcl_jax.data.sources.tables import columns_of
from rdbcl_jax.messages import line_of


class HubRows:
    """Rows of a split, mapped into memory by the library. SPLIT may be a part: `train[:10%]`."""

    def __init__(self, source: str):
        name, config, split = _parsed(source)
        try:
            import datasets
        except ImportError as error:
            raise ImportError(f"{source!r} needs datasets: pip install 'rdbcl_jax[hf]'") from error
        try:
            found = datasets.load_dataset(name, config, split=split)
        except Exception as error:  # of networks, scripts, names and splits
            raise ValueError(
                f"{source!r} cannot be read ({line_of(error)}); without a network it must be in "
                "the library's cache, or NAME a directory"
            ) from None
        self.source, self.own = source, f"{name}/{split}"
        self.folder = Path(name) if Path(name).is_dir() else Path()
        self.rows: Any = found.with_format("arrow")
        self.files = [Path(file["filename"]) for file in found.cache_files]
        self.version = f"{source} {found._fingerprint}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        found = columns_of(self.rows[number], 0)
        columns, problem = ({}, found) if isinstance(found, str) else (found, "")
        where = f"{self.source}, row {number}"
        return Row(where, self.folder, f"{self.own}:{number}", columns, problem)


def _parsed(source: str) -> tuple[str, str | None, str]:
    """(name, config, split). A name on the hub is OWNER/NAME, or NAME for a few old ones."""
    parts = re.fullmatch(r"hf:(.+?):([^:\[]+(?:\[[^\]]*\])?)", source)
    if not parts:
        raise ValueError(
            f"{source!r}: expected hf:NAME[/CONFIG]:SPLIT, such as hf:lmms-lab/ScienceQA:test"
        )
    name, split = parts[1], parts[2]
    if Path(name).is_dir():
        return name, None, split
    if Path(name).parent.is_dir() and name.startswith((".", "/")):
        return str(Path(name).parent), Path(name).name, split
    owner, _, rest = name.partition("/")
    own, _, config = rest.partition("/")
    return (f"{owner}/{own}" if own else owner), config or None, split
