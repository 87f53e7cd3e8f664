"""Whether numbers are finite, or differ, is asked of parameters that lie there once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rdbcl_jax import finite
from rdbcl_jax.sharding import make_mesh

SHAPES = {"stack": (16, 256, 512), "matrix": (64, 512), "norm": (16, 512)}


def beside(function, *trees):
    """Bytes that a program needs beside its arguments, over those of the first of them."""
    memory = jax.jit(function).lower(*trees).compile().memory_analysis()
    return memory.temp_size_in_bytes / sum(a.size * a.dtype.itemsize for a in trees[0])


@pytest.mark.parametrize("one", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("other", ["bfloat16", "float32"])
def test_little_lies_beside_the_parameters(one, other):
    trees = [
        [jax.ShapeDtypeStruct(shape, dtype) for shape in SHAPES.values()] for dtype in (one, other)
    ]
    assert beside(finite._finite_leaves, trees[0]) < 0.1
    assert beside(finite._differ, *trees) < 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_number_that_is_not_finite_is_found(name, dtype):
    tree = {key: np.zeros(shape, np.float32) for key, shape in SHAPES.items()}
    finite.check_finite(tree, "it")
    tree[name][3, 5] = -np.inf
    tree = jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)
    with pytest.raises(finite.NotFinite, match=f"it: {name}, index 3, holds NaN"):
        finite.check_finite(tree, "it")


@pytest.mark.parametrize("name", SHAPES)
def test_one_number_makes_them_differ(name):
    one = {key: jnp.ones(shape) for key, shape in SHAPES.items()}
    assert not finite.differ(one, one)
    other = {**one, name: one[name].at[2, 7].add(0.01)}
    assert finite.differ(one, other)
    # in the dtypes of the other, where so little is nothing
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), one)
    assert not finite.differ({**one, name: one[name].at[2, 7].add(0.001)}, half)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_devices_do_not_meet_in_a_loop(dtype):
    """A program of many loops, in each of which eight CPU devices met, hung twice."""
    mesh = make_mesh(2, 2, 2)
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    stack = jax.ShapeDtypeStruct((4, 16, 16), dtype, sharding=split)
    for function, *trees in (
        (finite._finite_leaves, [stack] * 2),
        (finite._differ, [stack], [stack]),
    ):
        text = function.lower(*trees).compile().as_text()
        loops = re.findall(r"body=%?([\w.]+)", text)
        assert len(loops) >= len(trees[0])
        for loop in loops:
            body = text.split(f"%{loop} (", 1)[1].split("\n}", 1)[0]
            assert "all-reduce(" not in body and "all-gather(" not in body
