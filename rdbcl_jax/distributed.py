"""Several processes that work as one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


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


def on_main(find: Callable[[], Any]) -> Any:
    """What the main process finds, on all of them: of plain JSON. A ValueError or OSError there is
    one on all, so that none waits for another that has ended."""
    if jax.process_count() == 1:
        return find()
    found: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            found = {"value": find()}
        except OSError as error:
            found = {"os": [error.errno, error.strerror or str(error), error.filename]}
        except ValueError as error:
            found = {"error": str(error)}
    text = _from_main(json.dumps(found, default=str).encode())
    found = json.loads(text)
    if "os" in found:
        raise OSError(*found["os"])
    if "error" in found:
        raise ValueError(found["error"])
    return found["value"]


def most_anywhere(value: int) -> int:
    """The largest value of any process; all of them ask at the same time."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.array(value, np.int32)).max())


def meet(where: str) -> None:
    """Waits until all processes are there."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _from_main(text: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text), np.int32)))
    padded = np.zeros(size, np.uint8)
    padded[: min(len(text), size)] = np.frombuffer(text, np.uint8)[:size]
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()
