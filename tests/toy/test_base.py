"""What the base model is taught: demonstrations that keep to the response format, or do not."""

import numpy as np
import pytest

from rdbcl_jax.lab.suites import forks
from rdbcl_jax.rewards.response_format import TAGS, parse
from rdbcl_jax.toy.base import Careless
from rdbcl_jax.training.run import train
from tests.engine import small_config


def test_a_share_of_the_demonstrations_keeps_to_the_format():
    source = forks.Demonstrations(1000, seed=3)
    careless = Careless(source, 0.4, seed=3)
    assert len(careless) == 1000
    pairs = [(source[i], careless[i]) for i in range(1000)]
    kept = [whole[1] == found[1] for whole, found in pairs]
    np.testing.assert_allclose(np.mean(kept), 0.4, atol=0.04)
    for (record, whole), (other, found) in pairs:
        assert record.id == other.id and parse(whole).ok
        if whole != found:
            assert not parse(found).ok
            assert found.split() == [word for word in whole.split() if word not in TAGS]


def test_which_ones_is_a_function_of_seed_and_index():
    source = forks.Demonstrations(100, seed=3)

    def texts(share, seed):
        careless = Careless(source, share, seed)
        return [careless[i][1] for i in range(len(careless))]

    assert texts(0.5, 3) == texts(0.5, 3) != texts(0.5, 4)
    assert texts(1.0, 3) == [source[i][1] for i in range(len(source))]


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("suite", "nope", r"config\.base\..*nope"),
        ("model_type", "qwen2", r"config\.base\.model_type is .qwen2., expected one of"),
        ("size", {"depht": 3}, r"config\.base\.size\.depht is no field; did you mean 'depth'"),
    ],
)
def test_a_base_that_cannot_be_made_is_refused_before_anything_is(tmp_path, field, value, message):
    config = small_config()
    config.base[field] = value
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
