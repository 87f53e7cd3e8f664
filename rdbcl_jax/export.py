"""A run's policy as a Hugging Face directory, for whatever else reads one."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rdbcl_jax.config import RunConfig
from rdbcl_jax.models import lora, save_limits, save_pretrained, stored_dtype
from rdbcl_jax.policy import unrounded
from rdbcl_jax.remote import of_this_machine
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.snapshots import load_snapshots
from rdbcl_jax.workdir import directory_of, place, run_config


def export(
    name: str,
    out: str | pathlib.Path,
    config: RunConfig | Mapping[str, Any] | None = None,
    dtype: str = "",
) -> pathlib.Path:
    """Writes weights, config, tokenizer and processor files of a policy to `out`; returns it.

    Adapters are merged into their matrices, in float32; config.json names the dtype of what is
    written. The model's parameters are spread over all devices at hand, whatever mesh the run had.

    Args:
      name: `WORKDIR@K`, the policy after K tasks, or `WORKDIR`, after the last finished one.
      out: a directory that is new or empty.
      config: the run's; default: what its results.json says.
      dtype: of the weights, such as "bfloat16"; empty: that of the base model's files.
    Raises:
      FileNotFoundError: no such workdir, task or base model.
      ValueError: `out` holds files; the config is another run's.
    """
    out = of_this_machine(out, "what is exported")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds files; expected a directory that is new or empty")
    config = RunConfig.of(config) if config else run_config(name)
    start, _, _ = place(config, name)
    config = config.changed({"model.frozen_dtype": unrounded(config.model.param_dtype, start)})
    base = directory_of(start)
    written = jnp.dtype(dtype or stored_dtype(base))
    (snapshot,) = load_snapshots(config, [name], make_mesh(data=1, fsdp=-1))
    model, params = snapshot.policy.model, snapshot.params
    del snapshot  # which holds all parameters, too
    shapes = dataclasses.replace(model, lora=None).abstract_params()
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, written), shapes)
    model, params = lora.merge(model, params, like, owned=True)
    save_pretrained(out, model, params, like=base)
    limits = config.model
    save_limits(out, min_pixels=limits.min_pixels or None, max_pixels=limits.max_pixels or None)
    return out
