"""Ours: RDB-CL on batches of which a share are prompts of earlier tasks.

On a new task alone an anchor slows what is to be learned, and says nothing about old prompts. On
old prompts the previous policy is mostly right: there it is worth an anchor, at every token
and not only where the group's rewards differ, and there its reasoning is portable.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from rdbcl_jax.methods.classic import rehearsing
from rdbcl_jax.methods.method import Method
from rdbcl_jax.methods.rdbcl import rdbcl


def portable_replay(config: ConfigDict) -> Method:
    """`config.replay` chooses the prompts, `config.portability` anchors them."""
    return rehearsing(config, rdbcl(config))
