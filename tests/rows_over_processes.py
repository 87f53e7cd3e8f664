"""`python -m tests.rows_over_processes`, in each of four processes with two devices: what is dealt,
put, read and put together again are the same rows, whichever way the mesh lies over the processes.
"""

import jax
import numpy as np

from rdbcl_jax.distributed import join_processes
from rdbcl_jax.sharding import (
    agree,
    all_hosts_rows,
    all_hosts_sum,
    local_rows,
    make_mesh,
    put_batch,
    replicated,
    row_shard,
    rows_of_leader,
)

ROWS = np.arange(16)


def check(mesh, parts, leader):
    shard, me = row_shard(mesh), jax.process_index()
    assert shard.parts == parts and shard.leads == (me == leader), shard
    mine = ROWS[shard.rows(len(ROWS))]
    placed = put_batch({"rows": mine, "scalar": np.float32(3)}, mesh)
    assert placed["rows"].shape == ROWS.shape and placed["scalar"].shape == ()
    assert int(jax.jit(lambda a: (a * a).sum())(placed["rows"])) == (ROWS**2).sum()
    np.testing.assert_array_equal(local_rows(placed["rows"]), mine)
    assert all_hosts_sum(np.array([mine.sum(), 1]), shard).tolist() == [ROWS.sum(), shard.groups]
    pairs = np.stack([mine, -mine], 1)
    np.testing.assert_array_equal(all_hosts_rows(pairs, shard), np.stack([ROWS, -ROWS], 1))
    found, expected = (np.full((len(mine), 3), 1 / 3 + who) for who in (me, leader))
    found[0, 0] = expected[0, 0] = np.nan  # and the others have more digits than float32
    np.testing.assert_array_equal(rows_of_leader(found, shard), expected)
    for elsewhere in (replicated(mesh), jax.NamedSharding(mesh, jax.P(None, ("data", "fsdp")))):
        square = jax.jit(lambda: jax.numpy.zeros((8, 8)), out_shardings=elsewhere)()
        try:
            local_rows(square)
        except ValueError as error:
            assert "expected an array whose rows are split" in str(error)
        else:
            raise AssertionError(f"read as rows: {elsewhere}")


def main():
    join_processes()
    me = jax.process_index()
    check(make_mesh(8, 1, 1), (2 * me, 2 * me + 1), me)
    check(make_mesh(2, 2, 2), (me,), me)
    check(make_mesh(2, 1, 4), (me // 2,), me // 2 * 2)
    # as a slice of hosts with 2 × 2 chips has it: a process's rows are not next to each other
    apart = np.array(jax.devices()).reshape(4, 2).T.reshape(-1)
    check(make_mesh(2, 4, 1, devices=list(apart)), (me, me + 4), me)
    assert agree("the same") and not agree(f"of process {me}")


if __name__ == "__main__":
    main()
