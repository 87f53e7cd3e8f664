import itertools

import numpy as np
import pytest

from rdbcl_jax.toy import digits


def test_splits_share_no_picture_and_lose_none():
    sources = {split: set(digits.load(split).sources) for split in digits.SPLITS}
    for a, b in itertools.combinations(digits.SPLITS, 2):
        assert not sources[a] & sources[b]
    assert set().union(*sources.values()) == set(range(1797))


def test_no_two_splits_hold_the_same_pixels():
    seen = [{p.tobytes() for p in digits.load(split).pixels} for split in digits.SPLITS]
    for a, b in itertools.combinations(seen, 2):
        assert not a & b


@pytest.mark.parametrize("split", digits.SPLITS)
def test_every_split_has_every_digit_often(split):
    data = digits.load(split)
    assert data.pixels.shape == (len(data.labels), 8, 8)
    assert data.pixels.min() == 0 and data.pixels.max() == 1
    counts = np.bincount(data.labels, minlength=10)
    assert counts.min() > 0.6 * counts.mean()


def test_unknown_split():
    with pytest.raises(ValueError, match="'dev'"):
        digits.load("dev")


def test_jitter_keeps_the_picture_and_follows_its_generator():
    picture = digits.load("train").pixels[0]
    one, same, other = (digits.jitter(picture, np.random.default_rng(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.min() >= 0 and one.max() <= 1
    assert np.corrcoef(one.ravel(), picture.ravel())[0, 1] > 0.95
