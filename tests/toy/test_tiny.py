import json
import pathlib

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer, Qwen2VLImageProcessorPil

from rdbcl_jax.data.suites import load_suite
from rdbcl_jax.lab.study import load_config
from rdbcl_jax.models.qwen_vl.config import read_config
from rdbcl_jax.rewards.response_format import in_format
from rdbcl_jax.toy import digits_suite, tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.write_tiny_model(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def tokenizer(path):
    return AutoTokenizer.from_pretrained(path)


def test_every_word_of_the_suite_is_one_token_and_comes_back(tokenizer):
    for task in digits_suite.TASKS:
        for record in digits_suite.make_records(task, "test", 5, seed=0):
            for text in (record.prompt, digits_suite.make_trace(record)):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert len(ids) == len(text.split())
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == text
                assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tags_are_found_without_spaces(tokenizer):
    ids = tokenizer("<think>rows 1</think><answer>4</answer><|im_end|>")["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert " ".join(pieces) == "<think> rows 1 </think> <answer> 4 </answer> <|im_end|>"


def test_unknown_words_are_unknown(tokenizer):
    assert tokenizer("sum of 3")["input_ids"][1] == tokenizer.unk_token_id


def test_chat_template_is_qwens(tokenizer):
    chat = [
        {"role": "system", "content": "sum"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "sum 4"}]},
    ]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nsum<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>sum 4<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_config_reads_as_ours_and_as_transformers(path, tokenizer):
    ours, theirs = read_config(path), AutoConfig.from_pretrained(path)
    assert theirs.model_type == "qwen2_5_vl"
    assert ours.text.vocab_size == theirs.text_config.vocab_size == len(tokenizer)
    assert sum(ours.text.mrope_section) == ours.text.head_dim // 2
    assert ours.text.heads % ours.text.kv_heads == 0 and ours.text.heads > ours.text.kv_heads
    assert (ours.vision.width // ours.vision.heads) % 4 == 0
    assert 0 < len(ours.vision.full_attention_layers) < ours.vision.depth  # both kinds
    assert ours.eos_token_ids == (tokenizer.eos_token_id,)
    assert ours.pad_token_id == tokenizer.pad_token_id
    assert ours.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")


def test_one_digit_cell_is_one_visual_token(path):
    processor = Qwen2VLImageProcessorPil.from_pretrained(path)
    record = digits_suite.make_record("sum", "test", 0, seed=0)
    out = processor(list(record.images), return_tensors="np")
    assert out["image_grid_thw"].tolist() == [[1, 4, 4]]
    patches = out["pixel_values"].reshape(4, 4, 3, 2, 4, 4)  # digit, patch, channel, time, y, x
    for cell in range(4):
        row, column = divmod(cell, 2)
        pixels = np.asarray(record.images[0])[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        shown = patches[cell, :, 0, 0].reshape(2, 2, 4, 4).swapaxes(1, 2).reshape(8, 8)
        np.testing.assert_allclose(shown, pixels / 127.5 - 1, atol=1e-6)


def test_extra_words_and_sizes(tmp_path):
    size = tiny.TinySize(depth=1, width=64, heads=2, kv_heads=1, vision_depth=1)
    path = tiny.write_tiny_model(tmp_path, size, extra_words=("puzzle", "sum"))
    config = json.loads((path / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (64, 1)
    fewer = AutoTokenizer.from_pretrained(tiny.write_tiny_model(tmp_path / "fewer"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert len(tokenizer) == len(fewer) + 1 and tokenizer.convert_tokens_to_ids("puzzle") > 0


@pytest.mark.parametrize(
    "file", ["quickstart.py", "studies/testbed.py", "studies/rft_vs_sft.py:run"]
)
def test_the_recipes_no_reasoning_is_a_word_of_their_base(tmp_path, file):
    file, *form = file.split(":")
    config = load_config(pathlib.Path(__file__).parents[2] / "configs" / file, *form)
    words = load_suite(config.base.suite).words()
    tokenizer = AutoTokenizer.from_pretrained(tiny.write_tiny_model(tmp_path, extra_words=words))
    ids = tokenizer(in_format(config.demonstrations.no_reasoning, "1"))["input_ids"]
    assert len(ids) == 6 and tokenizer.unk_token_id not in ids
