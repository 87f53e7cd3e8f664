"""What each of two processes of a run does in tests/test_distributed.py: `tests.joined FOLDER`."""

import pathlib
import sys
import time

import jax

from rdbcl_jax.distributed import join_processes, on_main
from rdbcl_jax.lock import WorkdirLock
from rdbcl_jax.training.run import _check_shared, _ending_together

folder = pathlib.Path(sys.argv[1])


def take(workdir):
    lock.append(WorkdirLock(workdir))
    return lock[-1].__enter__().owner


join_processes()
process, lock = jax.process_index(), []

_check_shared(folder / "shared", on_main(lambda: take(folder / "shared")))

own = folder / str(process)  # of its host alone
owner = on_main(lambda: take(own))
try:
    _check_shared(own, owner, seconds=1.0)
except ValueError as error:
    (folder / f"{process}.txt").write_text(str(error))

began = time.monotonic()
with _ending_together():
    time.sleep(3.0 * (process == 0))
assert time.monotonic() - began >= 2.5
