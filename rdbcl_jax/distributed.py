"""Several processes that work as one."""

from __future__ import annotations

import os

import jax


def join_processes() -> None:
    """Joins the processes of a run, before anything touches a device. TPU pods and SLURM tell JAX
    all it needs; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do."""
    number = {
        "num_processes": os.environ.get("JAX_NUM_PROCESSES"),
        "process_id": os.environ.get("JAX_PROCESS_ID"),
    }
    jax.distributed.initialize(
        coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
        **{name: int(value) for name, value in number.items() if value is not None},
    )
