"""Prompts as we encode them against the families' own Hugging Face processors: the same ids, masks
and pixels, for pictures of many sizes.

The reference is the family's processor class around what `AutoImageProcessor` and `AutoTokenizer`
give here. That image processor is PIL's, since torchvision is not installed; `AutoProcessor` itself
wants torchvision for these families, whose processors read videos too.
"""

import json
import shutil

import jax
import numpy as np
import pytest
import transformers
from PIL import Image

from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.data.records import Record
from rdbcl_jax.models import from_config, read_processor, save_limits
from rdbcl_jax.models.registry import family as family_of

FAMILIES = {
    "gemma3": transformers.Gemma3Processor,
    "internvl": transformers.InternVLProcessor,
    "llava_onevision": transformers.LlavaOnevisionProcessor,
}
families = pytest.mark.parametrize("family", FAMILIES, scope="module")
# of photographs, strips, single pixels, whole numbers of tiles, and a pixel more or less
SIZES = (
    *((64, 48), (48, 64), (97, 61), (400, 300), (33, 100), (1, 1), (3, 2), (1, 90), (200, 3)),
    *((16, 16), (32, 16), (16, 48), (15, 17), (31, 32), (47, 16), (16, 33), (333, 77), (50, 50)),
)


LARGEST = 2 * 16**2  # pixels: two tiles of each


def picture(width, height):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    noise = np.random.default_rng(width * height).integers(0, 60, (height, width))
    pixels = np.stack([x * 3 % 196 + noise, y * 5 % 256, x * y % 251], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def record(prompt, *sizes):
    return Record("r", "sum", prompt, tuple(picture(*s) for s in sizes), "4", "exact", {})


RECORDS = [
    *[record("sum 4", size) for size in SIZES],
    record("sum red"),
    record("red <image> day <image> 4", (64, 48), (15, 90)),
    record("sum <image>", (40, 7)),
    record("sum 4 red", (9, 31), (48, 16), (16, 16)),
]


@pytest.fixture(scope="module")
def path(family, tmp_path_factory):
    path = tmp_path_factory.mktemp(family)
    return family_of(family).tiny.write(path, ("sum", "red", "day", "4"), tags=("<think>",))


def reference(family, path):
    class WithoutVideos(FAMILIES[family]):
        def check_argument_for_proper_class(self, name, argument):
            """Without torchvision there is no class of video processors to check."""

    options = json.loads((path / "processor_config.json").read_text())
    not_ours = ("processor_class", "image_processor")
    return WithoutVideos(
        image_processor=transformers.AutoImageProcessor.from_pretrained(path),
        tokenizer=transformers.AutoTokenizer.from_pretrained(path),
        **{name: value for name, value in options.items() if name not in not_ours},
    )


def encoder(path, lengths=(), **sizes):
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return PromptEncoder(tokenizer, read_processor(path, **sizes), lengths=lengths)


def chat(one):
    """The record as a user of the processor would write it."""
    prompt = one.prompt if "<image>" in one.prompt else "<image>" * len(one.images) + one.prompt
    texts = [{"type": "text", "text": text} for text in prompt.split("<image>")]
    content = texts[:1]
    for text in texts[1:]:
        content += [{"type": "image"}, text]
    return [{"role": "user", "content": content}]


def processed(family, path, records):
    processor = reference(family, path)
    template = processor.tokenizer.apply_chat_template
    text = [template(chat(one), tokenize=False, add_generation_prompt=True) for one in records]
    images = [list(one.images) for one in records]
    return processor(text=text, images=images, padding=True, return_tensors="np")


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@families
def test_ids_masks_and_pixels_are_the_processors(family, path):
    expected = processed(family, path, RECORDS)
    found = encoder(path).encode(RECORDS)
    np.testing.assert_array_equal(found.tokens, expected["input_ids"])
    np.testing.assert_array_equal(found.mask, expected["attention_mask"])
    # the pixels are in the inputs that the model makes of the processor's output
    assert_same(found, from_config(path).prepare(**expected))


@families
def test_sizes_of_batches_change_no_prompt(family, path):
    sizes = {"patch_slots": (16, 64, 1000), "images_per_prompt": (1, 2)}
    padded, exact = encoder(path, **sizes), encoder(path)
    records = [record("sum 4", (40, 20)), record("sum 4"), record("sum", (15, 17))]
    model = from_config(path)
    params = model.init(jax.random.key(0))
    embed = jax.jit(model.embed_prompts)
    for some in (records, records[1:2]):
        found, expected = padded.encode(some), exact.encode(some)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_allclose(
            embed(params, found)[0], embed(params, expected)[0], rtol=1e-5, atol=1e-5
        )
    # with images or without, batches have one shape
    padded = encoder(path, patch_slots=(1000,), images_per_prompt=(1,), lengths=(200,))
    shapes = [jax.tree.map(np.shape, padded.encode([one])) for one in records]
    assert shapes[0] == shapes[1] == shapes[2]


@families
def test_images_beyond_the_sizes_name_their_record(family, path):
    with pytest.raises(ValueError, match=r"record 'r' needs .* of patch_slots, at most 16 allowed"):
        encoder(path, patch_slots=(16,)).encode([record("sum", (64, 48))])
    with pytest.raises(ValueError, match="record 'r' needs 2 of images_per_prompt"):
        encoder(path, images_per_prompt=(1,)).encode([record("sum", (16, 16), (16, 16))])
    with pytest.raises(ValueError, match=r"record 'r': 2 image placeholders .* its 1 images"):
        encoder(path).encode([record("sum <image> <image>", (16, 16))])


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if family_of(name).save_limits], scope="module"
)
@pytest.mark.parametrize("nested", [False, True])
def test_limits_of_images_travel_into_the_files(family, nested, path, tmp_path):
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    if nested:  # as transformers 5 writes them
        one, other = tmp_path / "processor_config.json", tmp_path / "preprocessor_config.json"
        options = {"image_processor": json.loads(other.read_text())}
        one.write_text(json.dumps(json.loads(one.read_text()) | options))
        other.unlink()
    limits = {"max_pixels": LARGEST}
    expected = encoder(tmp_path, **limits).encode(RECORDS)
    assert expected.tokens.shape[1] < encoder(tmp_path).encode(RECORDS).tokens.shape[1]
    save_limits(tmp_path, min_pixels=None, **limits)
    found = encoder(tmp_path).encode(RECORDS)
    assert_same(found, expected)
    theirs = processed(family, tmp_path, RECORDS)
    np.testing.assert_array_equal(found.tokens, theirs["input_ids"])
    assert_same(found, from_config(tmp_path).prepare(**theirs))
