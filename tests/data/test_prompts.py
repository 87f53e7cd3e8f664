import copy
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.prompts import PromptEncoder, pad
from rdbcl_jax.data.records import Record
from rdbcl_jax.models import read_processor
from rdbcl_jax.toy import digits_suite, tiny
from tests import engine

SIZES = {
    "lengths": (16, 32),
    "patch_slots": (16, 32),
    "images_per_prompt": (1, 2),
    "response_lengths": (16,),
}


@pytest.fixture(scope="module")
def make_encoder(tmp_path_factory):
    path = tiny.write_tiny_model(tmp_path_factory.mktemp("tiny"))
    tokenizer = AutoTokenizer.from_pretrained(path)

    def make(patch_slots=(), images_per_prompt=(), **options):
        sizes = {"patch_slots": patch_slots, "images_per_prompt": images_per_prompt}
        return PromptEncoder(tokenizer, read_processor(path, **sizes), **options)

    return make


@pytest.fixture(scope="module")
def encoder(make_encoder):
    return make_encoder(**SIZES)


def record(prompt="sum 4", *sizes):
    images = tuple(Image.new("RGB", size) for size in sizes)
    return Record("r-7", "sum", prompt, images, "4", "exact", {})


def text(encoder, batch, row):
    return encoder.tokenizer.decode(batch.tokens[row][batch.mask[row]])


def test_prompt_is_the_chat_with_one_pad_per_visual_token(encoder):
    first = digits_suite.make_record("sum", "test", 0, seed=0)
    batch = encoder.encode([first])
    assert text(encoder, batch, 0) == (
        f"<|im_start|> user <|vision_start|>{' <|image_pad|>' * 4} <|vision_end|> {first.prompt}"
        " <|im_end|> <|im_start|> assistant"
    )
    assert not batch.mask[0, :-15].any() and batch.mask[0, -15:].all()


def test_image_tokens_equal_visual_tokens_and_point_at_their_patches(encoder):
    records = [
        digits_suite.make_record(t, "test", i, seed=0) for i, t in enumerate(digits_suite.TASKS)
    ]
    batch = encoder.encode(records)
    own, images = batch.model_inputs, batch.model_inputs.images
    merge = encoder.processor.config.vision.merge_size
    for row, one in enumerate(records):
        slots = own.image_slots[row][own.image_slots[row] >= 0]
        assert len(slots) == images.mask[row].sum() // merge**2 == len(set(slots))
        for unit, slot in enumerate(slots):  # row-major in the text, wherever the patches lie
            patch = images.coords[row, 0, slot * merge**2]
            columns = one.images[0].width // 8
            assert tuple(patch) == (unit // columns * merge, unit % columns * merge)
            pixels = images.patches[row, 0, slot * merge**2].reshape(3, 2, 4, 4)[0, 0]
            y, x = 4 * patch
            shown = np.asarray(one.images[0])[y : y + 4, x : x + 4]
            np.testing.assert_allclose(pixels, shown / 127.5 - 1, atol=1e-6)


def test_batch_agrees_with_each_record_alone(encoder):
    records = [
        digits_suite.make_record(t, "test", i, seed=0) for i, t in enumerate(digits_suite.TASKS)
    ]
    together = encoder.encode(records)
    for row, one in enumerate(records):
        alone = encoder.encode([one])
        for of in (
            lambda batch: batch.tokens,
            lambda batch: batch.model_inputs.positions,
            lambda batch: batch.model_inputs.image_slots,
        ):
            np.testing.assert_array_equal(
                of(together)[row][together.mask[row]], of(alone)[0][alone.mask[0]]
            )
        assert together.next_position[row] == alone.next_position[0]


def test_sizes_are_the_smallest_that_fit(encoder, make_encoder):
    small = encoder.encode([record("sum", (16, 16))])
    assert small.tokens.shape == (1, 16) and small.model_inputs.images.patches.shape == (
        1,
        1,
        16,
        96,
    )
    large = encoder.encode([record("sum", (16, 16)), record("sum 4 red day", (32, 16))])
    assert large.tokens.shape == (2, 32) and large.model_inputs.images.patches.shape == (
        2,
        1,
        32,
        96,
    )
    exact = make_encoder().encode(digits_suite.make_records("sum", "test", 2, seed=0))
    assert exact.tokens.shape == (2, 15)


def test_rows_with_no_one_and_two_images_mix(encoder):
    records = [record(), record("sum 4", (16, 16)), record("sum", (16, 16), (24, 16))]
    own = encoder.encode(records).model_inputs
    assert own.images.grid.tolist() == [
        [[0, 0]] * 2,
        [[4, 4], [0, 0]],
        [[4, 4], [4, 6]],
    ]
    assert (own.image_slots >= 0).sum(1).tolist() == [0, 4, 10]
    assert own.image_slots[2].max() >= 8  # the second image's tokens follow the first's slots


def test_text_only_batches(make_encoder):
    assert make_encoder().encode([record()]).model_inputs.images is None
    always = make_encoder(images_per_prompt=(1,), patch_slots=(16,)).encode([record()])
    assert (
        always.model_inputs.images.patches.shape == (1, 1, 16, 96)
        and not always.model_inputs.images.mask.any()
    )


def test_marks_say_where_images_stand(encoder):
    batch = encoder.encode([record("sum <image> 4 <image>", (16, 8), (8, 8))])
    assert text(encoder, batch, 0) == (
        "<|im_start|> user sum <|vision_start|> <|image_pad|> <|image_pad|> <|vision_end|> 4"
        " <|vision_start|> <|image_pad|> <|vision_end|> <|im_end|> <|im_start|> assistant"
    )


def test_template_and_system_prompt(make_encoder):
    encoder = make_encoder(template="walk {prompt} back", system_prompt="red")
    assert text(encoder, encoder.encode([record()]), 0) == (
        "<|im_start|> system red <|im_end|> <|im_start|> user walk sum 4 back <|im_end|>"
        " <|im_start|> assistant"
    )


def test_a_records_own_system_message_goes_before_the_runs(make_encoder, tmp_path):
    chat = [{"role": "system", "content": "day"}, {"role": "user", "content": "sum 4"}]
    rows = [{"prompt": chat, "answer": "4"}, {"prompt": "sum 4", "answer": "4"}]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = load_records(tmp_path / "chats.jsonl", task="sum")

    def prompts(**options):
        encoder = make_encoder(**options)
        return [text(encoder, encoder.encode([one]), 0) for one in records]

    plain = "<|im_start|> user sum 4 <|im_end|> <|im_start|> assistant"
    own, runs = (f"<|im_start|> system {word} <|im_end|> {plain}" for word in ("day", "red"))
    assert prompts() == [own, plain]
    assert prompts(system_prompt="red") == [own, runs]


def test_prefix_begins_the_response(encoder):
    batch = encoder.encode([record(), record()], prefixes=["<think> rows", ""])
    assert text(encoder, batch, 0).endswith("<|im_start|> assistant <think> rows")
    assert text(encoder, batch, 1).endswith("<|im_start|> assistant")


def test_ids(encoder):
    assert encoder.encode([record(), record()]).record_ids.tolist() == [0, 1]
    assert encoder.encode([record(), record()], ids=[8, 3]).record_ids.tolist() == [8, 3]


@pytest.mark.parametrize(
    "prompt, sizes",
    [
        ("sum <image> 4", ()),
        ("sum <image> 4", ((8, 8), (8, 8))),
    ],
)
def test_images_that_do_not_match_their_placeholders_name_the_record(encoder, prompt, sizes):
    with pytest.raises(ValueError, match=r"record 'r-7'.*placeholders"):
        encoder.encode([record(), record(prompt, *sizes)])


def test_what_does_not_fit_names_the_record(encoder):
    for wrong in (record("sum " * 40), record("sum", (64, 16)), record("sum", *[(8, 8)] * 3)):
        wrong = dataclasses.replace(wrong, id="too-big")
        with pytest.raises(ValueError, match=r"'too-big' needs .* allowed"):
            encoder.encode([record(), wrong])


def test_supervised_responses_end_with_the_end_token_and_a_mask(encoder):
    records = digits_suite.make_records("sum", "test", 3, seed=0)
    responses = [digits_suite.make_trace(r) for r in records]
    batch = encoder.encode_supervised(records, responses)
    assert batch.tokens.shape == batch.mask.shape == (3, 1, 16)
    for row, response in enumerate(responses):
        real = batch.tokens[row, 0][batch.mask[row, 0]]
        assert encoder.tokenizer.decode(real) == response + " <|im_end|>"
        assert batch.mask[row, 0].tolist() == [True] * 14 + [False] * 2
    np.testing.assert_array_equal(batch.prompts.tokens, encoder.encode(records).tokens)


def test_a_response_of_unknown_words_names_the_record(encoder):
    with pytest.raises(ValueError, match=r"record 'r-7': .* no token .* '<think> \. </think>"):
        encoder.encode_supervised([record()], ["<think> . </think> <answer> 4 </answer>"])
    assert encoder.encode_supervised([record()], ["<unk> 4"]).mask.sum() == 3  # and the end


def test_a_token_that_the_model_has_no_embedding_of_names_the_record(make_encoder):
    """Added to a tokenizer, and the embeddings were not resized."""
    encoder = make_encoder()
    encoder.tokenizer = copy.deepcopy(encoder.tokenizer)
    encoder.tokenizer.add_tokens(["<new>"])
    message = r"record 'r-7': the tokenizer's id of '<new>' is (\d+), .* embeddings of \1 tokens"
    with pytest.raises(ValueError, match=message):
        encoder.encode([record(), record("sum <new>")])
    with pytest.raises(ValueError, match=message):
        encoder.encode_responses(["<new>"], [record()])


def test_several_responses_per_prompt(encoder):
    records = digits_suite.make_records("sum", "test", 2, seed=0)
    batch = encoder.encode_supervised(records, [["rows 1", "back 2"], ["rows 3", "4"]])
    assert batch.tokens.shape == (2, 2, 16)
    assert encoder.tokenizer.decode(batch.tokens[1, 0][batch.mask[1, 0]]) == "rows 3 <|im_end|>"
    with pytest.raises(ValueError, match=r"differ: \[1, 2\]"):
        encoder.encode_supervised(records, ["rows 1", ["rows 3", "4"]])


def test_pad():
    tokens, mask = pad([[5], [6, 7]], 3, 9, left=True)
    assert tokens.tolist() == [[9, 9, 5], [9, 6, 7]]
    assert mask.tolist() == [[False, False, True], [False, True, True]]
    assert pad([[5]], 2, 9)[0].tolist() == [[5, 9]]


def test_a_tokenizer_need_not_name_the_end(tmp_path):
    path = engine.write_random_model(tmp_path / "model")
    file = path / "tokenizer_config.json"
    named = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in named.items() if k != "eos_token"}))
    policy, _ = engine.load(path)
    (end,) = policy.model.config.eos_token_ids
    assert policy.tokenizer.eos_token_id is None
    assert policy.stop_ids == (end,) and policy.encoder.end_id == end
    processor = policy.encoder.processor
    # nor does a model need a token to fill with
    unfilled = dataclasses.replace(processor.config, pad_token_id=None)
    encoder = PromptEncoder(policy.tokenizer, dataclasses.replace(processor, config=unfilled))
    batch = encoder.encode(engine.records(4))
    assert not batch.mask.all() and (batch.tokens[~batch.mask] == end).all()
    silent = dataclasses.replace(processor.config, eos_token_ids=())
    silent = dataclasses.replace(processor, config=silent)
    assert PromptEncoder(policy.tokenizer, silent).stop_ids == (end,)  # by the chat template
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    encoder = PromptEncoder(policy.tokenizer, silent)
    with pytest.raises(ValueError, match="no token ends a response"):
        _ = encoder.end_id
