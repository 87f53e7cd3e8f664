"""One of several processes that go from step to step until one of them is asked to stop."""

import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from rdbcl_jax.distributed import join_processes
from rdbcl_jax.training.stop import Stop, Stopped


def main() -> None:
    join_processes()
    multihost_utils.sync_global_devices("start")
    with Stop() as stop:
        print("started", flush=True)
        for step in range(3000):
            time.sleep(0.01 if jax.process_index() else 0.012)
            if not step % 5:  # as an update does, they wait for each other
                multihost_utils.process_allgather(np.zeros(1, np.int32))
            try:
                stop.check(f"after step {step}")
            except Stopped as stopped:
                print(f"stopped after {step}", flush=True)
                sys.exit(stopped.code)


if __name__ == "__main__":
    main()
