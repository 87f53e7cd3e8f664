"""Ours: RDB-CL on batches of which a share is prompts of earlier tasks.

Alone, an anchor slows what is new, and what it should protect is forgotten all the same; beside
replay it is kept (docs/studies/rdb_cl.md).
"""

from __future__ import annotations

from rdbcl_jax.config import RunConfig
from rdbcl_jax.methods.classic import ReplayOptions, of_old_prompts, rehearsing
from rdbcl_jax.methods.method import Method
from rdbcl_jax.methods.rdbcl import every_sample, rdbcl


def portable_replay(config: RunConfig) -> Method:
    """`config.replay` chooses the prompts, `config.portability` anchors them."""
    old = config.section(ReplayOptions).anchor == "old"
    return rehearsing(config, rdbcl(config, of_old_prompts if old else every_sample))
