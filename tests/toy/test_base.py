"""What the base model is taught: demonstrations that keep to the response format, or do not."""

import shutil

import jax
import numpy as np
import pytest

from rdbcl_jax.config import RunConfig
from rdbcl_jax.lab.suites import forks
from rdbcl_jax.models import from_pretrained
from rdbcl_jax.models.qwen_vl.model import _vision_places
from rdbcl_jax.rewards.response_format import TAGS, parse
from rdbcl_jax.toy.base import MADE, Careless, check_base, draft_model, make_base
from rdbcl_jax.training.run import train
from rdbcl_jax.training.setup import prepare
from tests.engine import one_device, small_config
from tests.reliability.faults import flip


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
        (
            "size",
            {"full_attention_layers": (-1,)},
            r"layers is \(-1,\), expected numbers of layers",
        ),
        ("size", {"depht": 3}, r"config\.base\.size\.depht is no field; did you mean 'depth'"),
    ],
)
def test_a_base_that_cannot_be_made_is_refused_before_anything_is(tmp_path, field, value, message):
    config = small_config()
    config.base[field] = value
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("layers", [(0,), (0, 1), ()])
def test_any_vision_layer_may_attend_to_the_whole_image(layers):
    """The first one, too: transformers counts `fullatt_block_indexes` from 0."""
    config = RunConfig.of(small_config()).changed({"base.size.full_attention_layers": layers})
    check_base(config)
    places, _ = _vision_places(draft_model(config).config.vision)
    np.testing.assert_array_equal(np.flatnonzero(places), layers)


def test_limits_of_pictures_are_tried_before_a_base_is_made():
    for changed, message in (
        ({"model.min_pixels": 2**30}, "less than min_pixels"),
        ({"base.size": {}, "base.model_type": "internvl", "model.max_pixels": 2**30}, "and 256"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(RunConfig.of(small_config()).changed(changed))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base as the program makes it, in as few steps as can be."""
    config = small_config()
    config.base.steps, config.base.batch_size = 1, 8
    folder = tmp_path_factory.mktemp("made") / "base"
    (folder.parent / "base.draft").mkdir()  # of one that was killed
    (folder.parent / "base.draft/model-00001-of-00002.safetensors").write_bytes(b"half")
    make_base(RunConfig.of(config), folder, one_device(), lambda step, loss: None)
    assert not list(folder.parent.glob("*.draft*/*")) and not list(folder.glob("*-of-*"))
    return RunConfig.of(config), folder


def test_a_base_that_is_not_taught_has_random_weights(tmp_path):
    config = RunConfig.of(small_config()).changed({"base.steps": 0, "base.seed": 3})
    path = make_base(config, tmp_path / "base", one_device(), lambda step, loss: pytest.fail())
    model, params = from_pretrained(path, dtype="float32")
    expected = jax.tree.leaves(model.init(jax.random.key(3)))
    for found, weights in zip(jax.tree.leaves(params), expected, strict=True):
        np.testing.assert_array_equal(found, weights)


@pytest.mark.slow
def test_a_base_that_is_there_is_taken_if_it_is_what_was_made(made, tmp_path):
    config, folder = made

    def take(changes=None, damage=lambda folder: None):
        copy = shutil.copytree(folder, tmp_path / str(len(list(tmp_path.iterdir()))))
        damage(copy)
        taken = config.changed(changes or {})
        return make_base(taken, copy, one_device(), lambda step, loss: pytest.fail("made again"))

    assert take() and take({"seed": 5, "data.train_count": 7, "optimizer.learning_rate": 0.1})
    assert take({"data.images_per_prompt": (1,)})  # the base of a study leaves that to the data
    assert take(damage=lambda base: shutil.rmtree(base / "made"))  # of before there was that
    for changes, damage, problem in (
        ({"base.seed": 1}, None, r"was made with base\.seed = 0, not 1"),
        ({}, lambda base: flip(base / "model.safetensors", 1), r"model\.safetensors is damaged"),
        ({}, lambda base: (base / "config.json").unlink(), r"config\.json is not there"),
        ({}, lambda base: shutil.rmtree(base) or base.mkdir(), r"has no model\.safetensors"),
        ({}, lambda base: (base / MADE).write_text("{}"), r"has a damaged made/manifest\.json"),
        (
            {},
            lambda base: (base / MADE).write_text('{"files": {}}'),
            r"has a damaged made/manifest",
        ),
    ):
        with pytest.raises(ValueError, match=problem) as error:
            take(changes, damage or (lambda base: None))
        assert "remove that folder" in str(error.value) and "\n" not in str(error.value)
