"""Patch slots, M-RoPE positions and image token indices against transformers' own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_window_index

from rdbcl_jax.models.qwen_vl import inputs
from tests.models.contract import IMAGE, pair, processed

MERGE = 2
grids = st.tuples(st.integers(1, 12), st.integers(1, 12)).map(lambda g: (g[0] * 2, g[1] * 2))


@given(grids, st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_slots_are_transformers_windows_with_padding(grid, units):
    rows, cols = grid
    source, coords, unit_slot = inputs.slot_layout(rows, cols, units, MERGE)
    order, bounds = get_vision_window_index(
        torch.tensor([[1, rows, cols]]), MERGE, units * MERGE * 4, 4
    )
    used = source[source >= 0]
    expected = (order.numpy()[:, None] * MERGE**2 + np.arange(MERGE**2)).reshape(-1)
    np.testing.assert_array_equal(used, expected)
    # a window of transformers is a window of slots
    window = np.repeat(np.arange(len(source)), 1)[source >= 0] // (units**2 * MERGE**2)
    sizes = np.unique(window, return_counts=True)[1]
    np.testing.assert_array_equal(np.cumsum(sizes), bounds.numpy()[1:])
    # every visual token finds its slot, and coordinates are those of the patch
    np.testing.assert_array_equal(source[unit_slot * MERGE**2] // MERGE**2, np.arange(len(order)))
    assert len({tuple(c) for c in coords[source >= 0]}) == rows * cols


@given(grids)
@settings(deadline=None, max_examples=20)
def test_without_windows_slots_are_the_processors_order(grid):
    source, _, unit_slot = inputs.slot_layout(*grid, 0, MERGE)
    np.testing.assert_array_equal(source, np.arange(grid[0] * grid[1]))
    np.testing.assert_array_equal(unit_slot, np.arange(len(source) // MERGE**2))


part = st.one_of(st.integers(1, 6), grids)
row = st.tuples(st.lists(part, min_size=1, max_size=5), st.sampled_from(["left", "right"]))


@given(st.lists(row, min_size=1, max_size=3))
@settings(deadline=None, max_examples=40)
def test_rope_positions_are_transformers(rows):
    models = pair("qwen2_5_vl")
    arrays = processed("qwen2_5_vl", *rows)
    prompts = models.model.prepare(**arrays)
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    if "pixel_values" not in arrays:
        return
    expected, delta = models.torch_model.model.get_rope_index(
        tensors["input_ids"],
        tensors["mm_token_type_ids"],
        image_grid_thw=tensors["image_grid_thw"],
        attention_mask=tensors["attention_mask"],
    )
    mask = arrays["attention_mask"].astype(bool)
    np.testing.assert_array_equal(
        prompts.model_inputs.positions[mask], expected.permute(1, 2, 0).numpy()[mask], strict=False
    )
    lengths = mask.sum(1)
    np.testing.assert_array_equal(prompts.next_position, lengths + delta[:, 0].numpy())
    image = (arrays["input_ids"] == IMAGE) & mask
    np.testing.assert_array_equal(prompts.model_inputs.image_slots >= 0, image)


def test_images_go_to_the_row_that_shows_them():
    arrays = processed(
        "qwen2_5_vl", ([2, (4, 4)], "left"), ([3], "left"), ([(6, 4), 1, (4, 4)], "left")
    )
    images = pair("qwen2_5_vl").model.prepare(**arrays).model_inputs.images
    np.testing.assert_array_equal(images.grid[..., 0], [[4, 0], [0, 0], [6, 4]])
    np.testing.assert_array_equal(images.mask.sum(-1), [[16, 0], [0, 0], [24, 16]])


def test_image_tokens_that_do_not_fit_their_images_name_the_row():
    arrays = processed("qwen2_5_vl", ([2], "left"), ([(4, 4), 1], "left"))
    arrays["input_ids"][1][arrays["input_ids"][1] == IMAGE] = [5, IMAGE, IMAGE, IMAGE]
    with pytest.raises(ValueError, match=r"row 1: 3 image tokens .* 4 visual tokens"):
        pair("qwen2_5_vl").model.prepare(**arrays)


def test_videos_are_refused():
    arrays = processed("qwen2_5_vl", ([(4, 4), 1], "left"))
    with pytest.raises(NotImplementedError, match="videos"):
        pair("qwen2_5_vl").model.prepare(**arrays, pixel_values_videos=np.zeros((4, 96)))
    arrays["image_grid_thw"][0, 0] = 2
    with pytest.raises(NotImplementedError, match="videos"):
        pair("qwen2_5_vl").model.prepare(**arrays)
