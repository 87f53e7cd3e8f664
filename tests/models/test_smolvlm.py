"""SmolVLM and Idefics3 beyond the contract: positions, tiles, and prompts as the family's own
Hugging Face processors make them."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.data.records import Record
from rdbcl_jax.models import from_pretrained, read_config, read_processor, save_limits
from rdbcl_jax.models.smolvlm import inputs
from rdbcl_jax.models.smolvlm.tiny import TinySize, write_tiny
from tests.models.case_smolvlm import CASE, TEXT, VISION, config
from tests.models.contract import IMAGE, pair, processed, torch_logits
from tests.models.oracle import checkpoint, worst

# ------------------------------------------------------------------------------ the model


@pytest.mark.parametrize("side", [26, 27, 32, 70])  # those of the published sizes among them
def test_positions_are_torchs_for_every_size_of_a_tile(side):
    sizes = [
        (rows, columns) for rows in range(1, side + 3) for columns in (rows, side, 1 + rows // 2)
    ]
    largest = side + 2
    mask = np.zeros((len(sizes), largest, largest), bool)
    for one, (rows, columns) in zip(mask, sizes, strict=True):
        one[:rows, :columns] = True
    # embeddings that say their position, of patches that are zero
    tower = transformers.Idefics3VisionConfig(hidden_size=1, image_size=side, patch_size=1)
    embeddings = Idefics3VisionEmbeddings(tower)
    embeddings.position_embedding.weight.data = torch.arange(side**2, dtype=torch.float32)[:, None]
    embeddings.patch_embedding.bias.data.zero_()
    with torch.no_grad():
        expected = embeddings(torch.zeros(len(sizes), 3, largest, largest), torch.tensor(mask))
    found = inputs.fractional_positions(mask, side)
    np.testing.assert_array_equal(found.reshape(len(sizes), -1), expected[..., 0].numpy())


def idefics3(**options):
    """Three patches to a side of a visual token, tiles that are not of the tower's size, a Llama 3
    decoder with its rotary embeddings and its shared keys."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    text = TEXT | {"rope_parameters": rope, "num_key_value_heads": 1, "head_dim": 12}
    return transformers.Idefics3Config(
        text_config={"model_type": "llama", **text},
        vision_config=VISION | {"image_size": 36},
        image_token_id=IMAGE,
        scale_factor=3,
        **options,
    )


def test_idefics3_with_tiles_smaller_than_its_tower():
    torch.manual_seed(0)
    model = transformers.Idefics3ForConditionalGeneration(idefics3()).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    ours, params = from_pretrained(checkpoint(model), dtype="float32")
    arrays = processed("smolvlm", *CASE.rows)
    # tiles of 6 × 6 patches make 4 visual tokens each
    of_tile = np.cumsum(arrays["input_ids"] == IMAGE, 1) % 9
    arrays["input_ids"] = np.where(
        (arrays["input_ids"] == IMAGE) & ~np.isin(of_tile, (1, 2, 3, 4)), 5, arrays["input_ids"]
    )
    with torch.no_grad():
        expected = torch_logits(model, arrays).numpy()
    found = ours.logits(params, **arrays)
    assert worst(found, expected, arrays["attention_mask"]) <= 1e-4


def test_without_a_pixel_mask_all_of_a_tile_is_real():
    models, arrays = pair("smolvlm"), processed("smolvlm", *CASE.rows)
    del arrays["pixel_attention_mask"]
    with torch.no_grad():
        expected = torch_logits(models.torch_model, arrays).numpy()
    found = models.model.logits(models.params, **arrays)
    assert worst(found, expected, arrays["attention_mask"]) <= 1e-4


def test_tiles_that_are_not_square_are_refused():
    arrays = processed("smolvlm", *CASE.prompts)
    arrays["pixel_values"] = arrays["pixel_values"][..., :16]
    arrays["pixel_attention_mask"] = arrays["pixel_attention_mask"][..., :16]
    with pytest.raises(ValueError, match="tiles of 24 × 16 pixels; expected squares"):
        pair("smolvlm").model.prepare(**arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": {"model_type": "mistral"}}, "text_config.model_type 'mistral'"),
        ({"text_config": {"mlp_bias": True}}, "text_config.mlp_bias is not supported"),
        ({"text_config": {"hidden_act": "gelu"}}, "text_config.hidden_act 'gelu'"),
        ({"scale_factor": 4}, "scale_factor 4 of 6 patches is not supported"),
        ({"vision_config": {"hidden_act": "relu"}}, "vision_config.hidden_act is 'relu'"),
    ],
)
def test_models_of_another_kind_are_refused(change, message, tmp_path):
    written = config(tied=False).to_dict()
    for name, value in change.items():
        written[name] = written[name] | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_fields_that_a_config_leaves_out_are_the_classs(tmp_path):
    """As the published files are: those of the class's defaults are not there."""
    text, vision = {"model_type": "llama", "vocab_size": 64}, {"image_size": 364, "patch_size": 14}
    written = {"model_type": "idefics3", "text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(written))
    found = read_config(tmp_path)
    default = transformers.Idefics3Config(text_config=text)
    assert (found.vision.width, found.vision.side) == (default.vision_config.hidden_size, 26)
    assert found.text.norm_eps == default.text_config.rms_norm_eps
    assert (found.scale, found.image_token_id) == (default.scale_factor, default.image_token_id)
    assert not found.text.tied


# ------------------------------------------------------------------------------ the prompts

TEMPLATE = """\
<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:\
{% if message['content'][0]['type'] != 'image' %} {% endif %}\
{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""
SIZE = TinySize(image_size=24, tiles=3)


def tokenizer(rows):
    """Bytes in pairs, as published ones are: line breaks are tokens, and two of them one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"]
    special += ["<global-img>"]
    special += [f"<row_{r + 1}_col_{c + 1}>" for r in range(rows) for c in range(rows)]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    own.train_from_iterator(["User: what is in it?\n\nAssistant: two\n\n\n"] * 9, trainer)
    own.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own,
        eos_token="<end_of_utterance>",
        pad_token="<|im_start|>",
        padding_side="left",
    )
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="module", params=[3, 1])  # does it have tokens for all rows and columns?
def path(request, tmp_path_factory):
    path = write_tiny(tmp_path_factory.mktemp("smolvlm"), ["a"], size=SIZE)
    own = tokenizer(request.param)
    own.save_pretrained(path)
    written = json.loads((path / "config.json").read_text())
    written["image_token_id"] = own.convert_tokens_to_ids("<image>")
    written["text_config"]["vocab_size"] = len(own)
    (path / "config.json").write_text(json.dumps(written))
    return path


@pytest.fixture(scope="module")
def theirs(path):
    """The family's processor. SmolVLM's own wants torchvision, for videos alone: see below."""
    processor = transformers.Idefics3Processor(
        transformers.SmolVLMImageProcessorPil.from_pretrained(path),
        transformers.AutoTokenizer.from_pretrained(path),
        image_seq_len=9,
        chat_template=TEMPLATE,
    )
    return processor


def photo(width, height, seed=0):
    """Something that is not smooth, so that every way of resizing gives other pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    noise = rng.integers(0, 60, (height, width, 3))
    waves = np.stack([x * 3 % 196, y * 5 % 196, (x * y) % 196], -1)
    return Image.fromarray((waves + noise).astype(np.uint8))


def chat(prompt, images, system=""):
    parts = [{"type": "image", "image": image} for image in images]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
    if system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return messages


def assert_same_prompts(path, theirs, rows):
    """`rows` of (prompt, images): ids, masks and pixels, and what the model makes of theirs."""
    records = [
        Record(f"r-{i}", "t", prompt, tuple(images), "4", "exact", {})
        for i, (prompt, images) in enumerate(rows)
    ]
    processor = read_processor(path)
    encoder = PromptEncoder(transformers.AutoTokenizer.from_pretrained(path), processor)
    found = encoder.encode(records)
    texts = [
        theirs.apply_chat_template(chat(p, images), add_generation_prompt=True)
        for p, images in rows
    ]
    images = [list(images) for _, images in rows]
    shown = {"images": images} if any(images) else {}
    expected = theirs(text=texts, **shown, padding=True, return_tensors="np")
    mask = expected["attention_mask"].astype(bool)
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_array_equal(found.tokens[mask], expected["input_ids"][mask])
    model = dataclasses.replace(pair("smolvlm").model, config=processor.config)
    prepared = model.prepare(**expected)
    assert jax.tree.structure(found.model_inputs) == jax.tree.structure(prepared.model_inputs)
    jax.tree.map(np.testing.assert_array_equal, found.model_inputs, prepared.model_inputs)
    np.testing.assert_array_equal(found.next_position, prepared.next_position)
    return found


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 90), st.integers(1, 90))
def test_prompts_are_the_processors_for_pictures_of_any_size(path, theirs, width, height):
    assert_same_prompts(path, theirs, [("what is in it?", [photo(width, height)])])


@pytest.mark.parametrize("size", [(640, 479), (3, 400), (401, 2), (1, 1), (72, 72), (24, 24)])
def test_prompts_are_the_processors_for_odd_pictures(path, theirs, size):
    assert_same_prompts(path, theirs, [("what\n\nis it", [photo(*size)])])


def test_batches_that_mix_no_one_and_several_images(path, theirs):
    rows = [
        ("what is in it?", [photo(60, 31)]),
        ("two", []),
        ("and these", [photo(20, 71), photo(72, 24), photo(9, 9)]),
    ]
    found = assert_same_prompts(path, theirs, rows)
    assert (found.model_inputs.places >= 0).any(1).tolist() == [True, False, True]
    assert_same_prompts(path, theirs, rows[1:2])


def test_a_system_message_is_in_the_prompt(path, theirs):
    encoder = PromptEncoder(
        transformers.AutoTokenizer.from_pretrained(path),
        read_processor(path),
        system_prompt="Be it",
    )
    found = encoder.encode([Record("r", "t", "what", (), "4", "exact", {})])
    expected = theirs.apply_chat_template(chat("what", [], "Be it"), add_generation_prompt=True)
    assert encoder.tokenizer.decode(found.tokens[0]) == expected
    assert "Be it" in expected


def test_smolvlms_and_idefics3s_processors_write_images_alike(path):
    processor = read_processor(path)
    for grid in ((0, 0), (1, 2), (3, 1), (2, 2)):
        expected = get_image_prompt_string(
            *grid, 9, "<fake_token_around_image>", "<image>", "<global-img>"
        )
        ids = processor.tokenizer(expected, add_special_tokens=False)["input_ids"]
        pictures = dataclasses.make_dataclass("Pictures", ["grids"])([grid])
        assert processor.expand([processor.config.image_token_id], pictures, "r") == ids


# ------------------------------------------------------------------------------ sizes and limits


def encoded(path, *images, **sizes):
    processor = read_processor(path, **sizes)
    encoder = PromptEncoder(transformers.AutoTokenizer.from_pretrained(path), processor)
    return encoder.encode([Record("r-7", "t", "what", images, "4", "exact", {})]).model_inputs


def test_batches_have_few_sizes(path):
    sizes = {"patch_slots": (36, 200, 400), "images_per_prompt": (1, 2)}
    wide, tall = photo(72, 24), photo(24, 72)  # a row or a column of 3 tiles, and the whole
    assert encoded(path, wide, **sizes).tiles.mask.shape == (1, 200 // 36, 36)
    both = encoded(path, wide, tall, **sizes).tiles
    assert both.mask.shape == (1, 2 * (200 // 36), 36)
    assert both.mask.any(-1).sum() == 8
    assert encoded(path, photo(72, 72), **sizes).tiles.mask.shape == (1, 11, 36)
    assert encoded(path, **sizes).tiles.mask.shape == (1, 1, 36)  # as batches with images have it
    with pytest.raises(ValueError, match="'r-7' needs 360 of patch_slots, at most 200"):
        encoded(path, photo(72, 72), patch_slots=(200,))
    with pytest.raises(ValueError, match="'r-7' needs 2 of images_per_prompt, at most 1"):
        encoded(path, wide, wide, images_per_prompt=(1,))


def test_max_pixels_is_the_square_that_images_are_resized_into(path, tmp_path):
    assert len(encoded(path, photo(60, 60)).tiles.mask[0]) == 10
    for limit, tiles in ((48 * 48, 5), (72 * 72 - 1, 5), (24 * 24, 1), (120 * 120, 10)):
        assert len(encoded(path, photo(60, 60), max_pixels=limit).tiles.mask[0]) == tiles
    with pytest.raises(ValueError, match=r"max_pixels is 575, expected 576"):
        read_processor(path, max_pixels=575)
    with pytest.raises(ValueError, match="min_pixels does not apply"):
        read_processor(path, min_pixels=100)
    copy = shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    save_limits(copy, max_pixels=72 * 72 - 1)
    assert len(encoded(copy, photo(60, 60)).tiles.mask[0]) == 5


def test_tiles_and_tokens_of_another_model_are_refused(tmp_path):
    path = write_tiny(tmp_path, ["a"], size=SIZE)
    written = json.loads((path / "config.json").read_text())
    for name, value, message in (
        ("image_token_id", 7, r"id of <image> is 3, expected 7"),
        (
            "vision_config",
            written["vision_config"] | {"image_size": 40},
            r"tiles of 24 × 24 pixels",
        ),
    ):
        (path / "config.json").write_text(json.dumps(written | {name: value}))
        with pytest.raises(ValueError, match=message):
            read_processor(path)


def test_images_that_do_not_match_their_placeholders_name_the_record(path):
    encoder = PromptEncoder(transformers.AutoTokenizer.from_pretrained(path), read_processor(path))
    for prompt, images in (("what <image> is", ()), ("two <image>", (photo(9, 9),) * 2)):
        with pytest.raises(ValueError, match=r"record 'r-7'.*placeholders"):
            encoder.encode([Record("r-7", "t", prompt, images, "4", "exact", {})])
