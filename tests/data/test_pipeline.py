import itertools

import numpy as np
import pytest

from rdbcl_jax.data.pipeline import batches, eval_batches, indices, rehearsed
from rdbcl_jax.sharding import RowShard


def take(n, *, order=None, seed=0, **options):
    def encode(items, ids):
        assert [item[1] for item in items] == ids.tolist()
        return ids

    source = [("item", i) for i in range(10)]
    order = indices(10, 4, seed) if order is None else order
    stream = batches(source, encode, order=order, **options)
    return np.stack(list(itertools.islice(stream, n)))


def test_every_record_once_per_pass_in_a_new_order():
    seen = take(10).reshape(4, 10)
    for one_pass in seen:
        assert sorted(one_pass) == list(range(10))
    assert len({tuple(one_pass) for one_pass in seen}) == 4


@pytest.mark.parametrize("start", [1, 3, 7])
def test_resume_by_number_gives_the_same_batches(start):
    np.testing.assert_array_equal(take(12)[start:], take(12 - start, start=start))


def test_order_depends_on_the_seed_and_not_on_threads():
    np.testing.assert_array_equal(take(8), take(8, threads=4, prefetch=8))
    assert not np.array_equal(take(8), take(8, seed=1))


def test_rehearsal_fills_the_last_rows_of_every_batch():
    seen = take(9, order=rehearsed(7, 3, batch_size=4, old_per_batch=1, seed=0))
    assert (seen[:, :3] < 7).all() and (seen[:, 3:] >= 7).all()
    assert sorted(seen[:7, :3].ravel()) == sorted(list(range(7)) * 3)
    assert sorted(seen[:, 3]) == sorted([7, 8, 9] * 3)


def test_shards_partition_each_batch():
    whole = take(6)
    parts = [take(6, shard=RowShard((i,), 2)) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="4 rows does not divide into 3 parts"):
        take(1, shard=RowShard((0,), 3))


def test_far_start_costs_nothing():
    assert take(1, start=10**7).shape == (1, 4)


def test_errors_of_the_encoder_reach_the_caller():
    def encode(items, ids):
        raise ValueError("record 'a' is wrong")

    with pytest.raises(ValueError, match="record 'a' is wrong"):
        next(batches(["a"], encode, order=indices(1, 1, 0)))


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_sees_every_record_once_in_order(count):
    shards = [
        list(eval_batches(range(10), lambda _, ids: ids, 4, RowShard((i,), count)))
        for i in range(count)
    ]
    seen = [ids[valid] for step in zip(*shards, strict=True) for ids, valid in step]
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(10))
    assert {len(ids) for shard in shards for ids, _ in shard} == {4 // count}
