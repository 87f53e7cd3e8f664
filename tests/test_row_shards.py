"""Which rows of a batch each process holds, on layouts that no test machine has."""

import jax
import numpy as np
import pytest

from rdbcl_jax import sharding
from rdbcl_jax.sharding import RowShard, make_mesh, row_groups, row_shard, split_rows


def slice_of(side):
    """[side, side] chips, each host with 2 × 2 of them, as a TPU v5e slice has them."""
    hosts = np.arange((side // 2) ** 2).reshape(side // 2, side // 2)
    return hosts.repeat(2, 0).repeat(2, 1)


def test_one_process_holds_all_rows():
    assert row_groups(np.zeros((4, 2), int)) == {(0, 1, 2, 3): (0,)}
    assert row_shard(make_mesh(2, 2, 2)) == RowShard((0, 1, 2, 3), 4)


def test_sixteen_hosts_with_tensor_over_four_of_them():
    groups = row_groups(slice_of(8))  # tensor = 8, along a line of chips
    assert list(groups) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert list(groups.values()) == [tuple(range(4 * i, 4 * i + 4)) for i in range(4)]


def test_tensor_over_the_chips_of_a_host_and_over_all_hosts():
    blocks = slice_of(4).reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)  # a host a line
    assert row_groups(blocks) == {(i,): (i,) for i in range(4)}
    assert row_groups(slice_of(4).reshape(1, 16)) == {(0,): (0, 1, 2, 3)}


def test_rows_of_a_host_need_not_be_neighbours():
    groups = row_groups(slice_of(4).reshape(16, 1))
    assert groups == {(0, 1, 4, 5): (0,), (2, 3, 6, 7): (1,)} | {
        (8, 9, 12, 13): (2,),
        (10, 11, 14, 15): (3,),
    }
    shard = RowShard((2, 3, 6, 7), 16)
    assert shard.groups == 4
    assert shard.rows(32).tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    with pytest.raises(ValueError, match="24 rows does not divide into 16 parts"):
        shard.rows(24)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_parts_are_those_that_the_sharding_puts_on_the_devices(sizes):
    mesh = make_mesh(*sizes)
    rows = split_rows(mesh).devices_indices_map((8,))
    devices = mesh.devices.reshape(-1, mesh.shape["tensor"])
    for part, line in enumerate(devices):
        for device in line:
            start, stop, _ = rows[device][0].indices(8)
            assert (start, stop) == (part * 8 // len(devices), (part + 1) * 8 // len(devices))


@pytest.mark.parametrize("processes", [[[0, 0], [0, 1], [1, 1]], [[0, 0], [0, 0], [1, 1]]])
def test_rows_that_overlap_in_part_or_are_uneven_make_no_groups(processes):
    assert row_groups(np.array(processes)) == {}


def test_a_mesh_that_splits_the_rows_of_a_process_is_refused(monkeypatch):
    def three_devices_a_process(mesh):
        return np.array([d.id // 3 for d in mesh.devices.flat]).reshape(-1, mesh.shape["tensor"])

    monkeypatch.setattr(sharding, "_processes", three_devices_a_process)
    devices = jax.devices()[:6]
    with pytest.raises(
        ValueError, match="data=3, fsdp=1, tensor=2: processes would share"
    ) as error:
        make_mesh(-1, 1, 2, devices=devices)
    for sizes in ((6, 1, 1), (2, 1, 3), (1, 2, 3), (1, 1, 6)):
        assert str(sizes) in str(error.value)
        make_mesh(*sizes, devices=devices)
    assert "(3, 1, 2)" not in str(error.value)
