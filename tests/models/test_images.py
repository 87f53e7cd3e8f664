"""The image processor's pixels, and the sizes that images are padded to."""

import hashlib
import json

import jax
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rdbcl_jax.models.qwen_vl import inputs
from rdbcl_jax.models.qwen_vl.processor import image_processor, save_limits, slot_sizes
from tests.models.contract import pair

QWEN2_5 = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
QWEN3 = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def picture(width, height):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 3 % 256, y * 5 % 256, x * y % 251], -1).astype(np.uint8))


def processor(tmp_path, options, **limits):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(options))
    return image_processor(tmp_path, **limits)


def expected_patches(image, rows, cols, patch, mean, std):
    """The same pixels written out: bicubic resize, normalise, merge-ordered patches, two frames."""
    resized = image.resize((cols * patch, rows * patch), Image.Resampling.BICUBIC)
    pixels = (np.asarray(resized, np.float64) / 255 - mean) / std
    grid = pixels.reshape(rows // 2, 2, patch, cols // 2, 2, patch, 3)
    grid = grid.transpose(0, 3, 1, 4, 6, 2, 5)  # token row, token col, row, col, channel, y, x
    return np.repeat(grid[..., None, :, :], 2, axis=-3).reshape(rows * cols, -1)


@pytest.mark.parametrize(
    ("options", "size", "grid"),
    [
        (QWEN2_5, (100, 70), (4, 8)),
        (QWEN2_5, (30, 20), (4, 6)),  # smaller than min_pixels
        (QWEN3, (700, 300), (18, 44)),
    ],
)
def test_pixels(options, size, grid, tmp_path):
    image = picture(*size)
    out = processor(tmp_path, options)([image], return_tensors="np")
    assert out["image_grid_thw"].tolist() == [[1, *grid]]
    mean, std = options["image_mean"], options["image_std"]
    expected = expected_patches(image, *grid, options["patch_size"], mean, std)
    np.testing.assert_allclose(out["pixel_values"], expected, atol=1e-5)


def test_pixels_are_golden(tmp_path):
    """The same bytes on every machine; pixels are whole numbers before they are normalised."""
    patches = processor(tmp_path, QWEN3, min_pixels=1024)([picture(90, 70)], return_tensors="np")
    levels = np.rint((np.asarray(patches["pixel_values"], np.float64) * 0.5 + 0.5) * 255)
    digest = hashlib.sha256(levels.astype(np.uint8).tobytes()).hexdigest()
    assert digest == "5b92c7a878df315e44498ea01899670d3ae9f4cb88e697a4b293e6c104e366e1"


def test_limits_come_from_the_caller(tmp_path):
    image = picture(400, 300)

    def area(**limits):
        out = processor(tmp_path, QWEN2_5, **limits)([image], return_tensors="np")
        return int(np.prod(out["image_grid_thw"])) * 14 * 14

    assert area(max_pixels=20_000) <= 20_000
    assert area(min_pixels=300_000) >= 300_000
    assert 20_000 < area() < 300_000


def test_limits_that_cross_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"max_pixels is 3000, less than min_pixels, 3136, of wh"):
        processor(tmp_path, QWEN2_5, max_pixels=3000)
    with pytest.raises(ValueError, match=r"max_pixels is 16777216, less than .* 16777217, of whi"):
        processor(tmp_path, QWEN3, min_pixels=16777217)
    with pytest.raises(ValueError, match=r"max_pixels is 5, less than min_pixels, 6 \("):
        processor(tmp_path, QWEN3, min_pixels=6, max_pixels=5)
    assert (
        processor(tmp_path, QWEN2_5, min_pixels=784, max_pixels=3000).size["longest_edge"] == 3000
    )


@pytest.mark.parametrize("options", [QWEN2_5, QWEN3], ids=["two names", "a size"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("limits", [{"max_pixels": 20_000}, {"min_pixels": 300_000}])
def test_limits_travel_into_the_files(options, nested, limits, tmp_path):
    image, limits = picture(400, 300), {"min_pixels": 3136, **limits}
    name = "processor_config.json" if nested else "preprocessor_config.json"
    content = {"processor_class": "P", "image_processor": options} if nested else options
    (tmp_path / name).write_text(json.dumps(content))
    expected = image_processor(tmp_path, **limits)([image], return_tensors="np")
    default = image_processor(tmp_path)([image], return_tensors="np")
    assert expected["image_grid_thw"].tolist() != default["image_grid_thw"].tolist()
    save_limits(tmp_path, **limits)
    for found in (
        image_processor(tmp_path),
        transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil"),
    ):
        out = found([image], return_tensors="np")
        np.testing.assert_array_equal(out["pixel_values"], expected["pixel_values"])
    written = json.loads((tmp_path / name).read_text())
    part = written["image_processor"] if nested else written
    assert written.keys() >= content.keys() and part.keys() >= options.keys()
    assert {name: part[name] for name in limits} == limits  # as older versions read them


@settings(deadline=None)
@given(st.sampled_from(["qwen2_vl", "qwen2_5_vl"]), st.integers(1, 40), st.integers(1, 40))
def test_every_image_finds_a_size_not_much_too_large(family, rows, cols):
    vision = pair(family).model.config.vision
    largest = inputs.slots_needed(80, 80, vision)
    sizes = slot_sizes(vision, largest)
    assert len(sizes) < 25
    needed = inputs.slots_needed(2 * rows, 2 * cols, vision)
    size = min(s for s in sizes if s >= needed)
    unit = sizes[0]
    assert needed <= size <= max(1.5 * needed, needed + unit)


def test_images_of_many_sizes_compile_once_per_size():
    model, params = pair("qwen2_5_vl").model, pair("qwen2_5_vl").params
    sizes = slot_sizes(model.config.vision, 96)
    traced = []

    @jax.jit
    def run(params, images):
        traced.append(images.patches.shape)
        return model.visual_tokens(params, images)

    used = set()
    for grid in [(4, 4), (2, 4), (6, 6), (4, 8), (8, 8), (6, 4)]:
        needed = inputs.slots_needed(*grid, model.config.vision)
        slots = min(size for size in sizes if size >= needed)
        pixels = np.zeros((grid[0] * grid[1], 96), np.float32)
        images, _ = inputs.place_images([[pixels]], [[grid]], model.config.vision, slots=slots)
        run(params, images)
        used.add(slots)
    assert len(traced) == len(used) < 6
