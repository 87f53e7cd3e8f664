"""Meshes, and which rows of a batch each process holds, on layouts that no test machine has."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from rdbcl_jax import sharding
from rdbcl_jax.models.decoder import AXES
from rdbcl_jax.planning.chips import topology_of
from rdbcl_jax.sharding import (
    ParamAxes,
    RowShard,
    held_whole,
    make_mesh,
    param_shardings,
    row_groups,
    row_shard,
    split_rows,
)


def slice_of(side):
    """[side, side] chips, each host with 2 × 2 of them, as a TPU v5e slice has them."""
    hosts = np.arange((side // 2) ** 2).reshape(side // 2, side // 2)
    return hosts.repeat(2, 0).repeat(2, 1)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What libtpu says of a chip, as far as the order of a mesh depends on it."""

    id: int
    coords: tuple[int, int, int]
    device_kind: str
    process_index: int
    platform: str = "tpu"
    core_on_chip: int = 0
    slice_index: int = 0


TOPOLOGIES = {  # kind, chips along each axis, and those of a host
    "v6e:4x4": ("TPU v6 lite", (4, 4, 1), (2, 2, 1)),
    "v5p:4x4x4": ("TPU v5", (4, 4, 4), (2, 2, 1)),
}


def chips(topology):
    kind, shape, host = TOPOLOGIES[topology]
    hosts = [n // h for n, h in zip(shape, host, strict=True)]
    found = []
    for z, y, x in itertools.product(*map(range, shape[::-1])):
        a, b, c = (n // h for n, h in zip((x, y, z), host, strict=True))
        process = (c * hosts[1] + b) * hosts[0] + a
        found.append(Chip(len(found), (x, y, z), kind, process))
    return found


@pytest.mark.tpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_chips_are_those_that_libtpu_describes(topology):
    found = topology_of(topology).devices

    def described(devices):
        return {(*d.coords, d.device_kind, d.platform, d.core_on_chip) for d in devices}

    def hosts(devices):  # which number a host has is of no account
        numbers = {device.process_index for device in devices}
        return {
            frozenset(tuple(d.coords) for d in devices if d.process_index == n) for n in numbers
        }

    assert described(found) == described(chips(topology))
    assert hosts(found) == hosts(chips(topology))


@pytest.mark.parametrize(
    "topology, sizes",
    [("v6e:4x4", (1, 8, 2)), ("v6e:4x4", (2, 4, 2)), ("v5p:4x4x4", (1, 32, 2))],
)
def test_meshes_whose_axes_share_one_of_the_torus(topology, sizes):
    devices = chips(topology)
    mesh = make_mesh(*sizes, devices=devices)
    assert tuple(mesh.shape.values()) == sizes and {*mesh.devices.flat} == {*devices}
    pairs = mesh.devices.reshape(-1, 2)  # the busiest axis runs over neighbours
    assert all(np.abs(np.subtract(a.coords, b.coords)).sum() == 1 for a, b in pairs)


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


def test_over_slices_lies_data_alone():
    """Whose coordinates are the same."""
    devices = [
        dataclasses.replace(
            chip,
            id=chip.id + 16 * number,
            process_index=chip.process_index + 4 * number,
            slice_index=number,
        )
        for number in range(2)
        for chip in chips("v6e:4x4")
    ]
    for sizes in ((2, 16, 1), (32, 1, 1), (4, 4, 2)):
        mesh = make_mesh(*sizes, devices=devices)
        assert tuple(mesh.shape.values()) == sizes
        halves = np.split(mesh.devices, 2)
        assert [{d.slice_index for d in half.flat} for half in halves] == [{0}, {1}]
    with pytest.raises(ValueError, match=r"mesh.data is 1, .* 2 TPU slices .* a multiple of 2"):
        make_mesh(1, 32, 1, devices=devices)


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


def test_what_a_mesh_does_not_divide_is_whole_and_said():
    shapes = {
        "language_model/layers/self_attn/k_proj/kernel": (2, 32, 16),  # of two heads
        "language_model/layers/self_attn/q_proj/kernel": (2, 32, 32),
        "language_model/layers/mlp/up_proj/kernel": (2, 32, 50),
    }
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    axes = ParamAxes(AXES, ("language_model/layers",), {"kv_heads": 2})
    mesh = make_mesh(1, 2, 4)
    specs = [tuple(s.spec) for s in jax.tree.leaves(param_shardings(params, axes, mesh))]
    assert specs == [
        (None, "fsdp", None),  # by name: up_proj, k_proj, q_proj
        (None, "fsdp", None),
        (None, "fsdp", "tensor"),
    ]
    assert held_whole(params, axes, mesh) == "mesh.tensor=4 does not divide kv_heads (2), mlp (50)"
    assert held_whole(params, axes, make_mesh(2, 2, 2)) == ""
