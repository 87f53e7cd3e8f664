"""Where chat templates stand, and those that begin the response themselves."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.data.records import Record
from rdbcl_jax.models import read_processor, read_tokenizer
from rdbcl_jax.policy import Policy
from rdbcl_jax.rewards.response_format import parse
from rdbcl_jax.rewards.spans import SpanFinder
from rdbcl_jax.toy import digits_suite, tiny

RECORDS = digits_suite.make_records("sum", "test", 2, seed=0)
THINK = "<think> rows 3 </think> <answer> 4 </answer>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_tiny_model(tmp_path_factory.mktemp("tiny"))


def moved(checkpoint, path, place, change=lambda template: template):
    """A copy of the checkpoint whose template stands in `place` alone."""
    shutil.copytree(checkpoint, path)
    template = change((path / "chat_template.jinja").read_text())
    (path / "chat_template.jinja").unlink()
    if place.endswith(".jinja"):
        (path / place).write_text(template)
    elif place:
        file = path / place
        content = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(content | {"chat_template": template}))
    return path


def thinking(template):
    return template.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")


PLACES = (
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "processor_config.json",
)


@pytest.mark.parametrize("place", PLACES)
def test_a_template_is_found_wherever_it_stands(place, checkpoint, tmp_path):
    path = moved(checkpoint, tmp_path / "moved", place)
    expected = PromptEncoder(AutoTokenizer.from_pretrained(checkpoint), read_processor(checkpoint))
    found = PromptEncoder(read_tokenizer(path), read_processor(path)).encode(RECORDS)
    np.testing.assert_array_equal(found.tokens, expected.encode(RECORDS).tokens)


def test_the_processors_template_goes_before_the_tokenizers(checkpoint, tmp_path):
    """A tokenizer may have that of its language model, which shows no pictures."""
    path = moved(checkpoint, tmp_path / "moved", "chat_template.json")
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": "no pictures"}))
    assert (
        read_tokenizer(path).chat_template
        == AutoTokenizer.from_pretrained(checkpoint).chat_template
    )


def test_no_template_is_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"no chat template, neither .* expected a model tuned"):
        read_tokenizer(moved(checkpoint, tmp_path / "moved", ""))


USERS = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content[0].text }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # of language models, for messages that are plain text
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "leaves out 'sum 4'; .* is parts"),
        ("{% for m in messages %}{{ 'user' + m.content }}{% endfor %}", "refuses it: .*; expected"),
        (USERS + "{% endfor %}", "leaves out 'red'; expected .* every role"),
        ("{{ raise_exception('no') }}", "refuses it: no$"),
    ],
)
def test_a_template_that_loses_a_text_is_refused(template, message, checkpoint, tmp_path):
    path = moved(checkpoint, tmp_path / "moved", "chat_template.jinja", lambda _: template)
    encoder = PromptEncoder(read_tokenizer(path), read_processor(path))
    record = Record("r", "sum", "sum 4", (), "4", "exact", system="red")
    with pytest.raises(ValueError, match=f"^record 'r': the model's chat template {message}"):
        encoder.encode([record])
    if "raise" in template or "+" in template:
        with pytest.raises(ValueError, match=r"^a question: the model's chat template refuses"):
            _ = encoder.opened


# ------------------------------------------------------------------ templates that open <think>


@pytest.fixture(scope="module")
def policies(checkpoint, tmp_path_factory):
    """Of the template as it is, and of one that opens the reasoning; neither has weights."""
    path = tmp_path_factory.mktemp("opened") / "checkpoint"
    made = []
    for place in (checkpoint, moved(checkpoint, path, "chat_template.jinja", thinking)):
        tokenizer, processor = read_tokenizer(place), read_processor(place)
        encoder = PromptEncoder(tokenizer, processor)
        spans = SpanFinder(tokenizer, encoder.opened)
        model = dataclasses.make_dataclass("Model", [("config", object)])(processor.config)
        made.append(Policy(model, {}, tokenizer, encoder, spans, jax.make_mesh((1,), ("data",))))
    return made


def test_prompts_end_inside_the_reasoning(policies):
    plain, opened = (policy.encoder for policy in policies)
    assert (plain.opened, opened.opened) == ("", "<think>\n")
    rows = [encoder.encode(RECORDS).tokens[0].tolist() for encoder in (plain, opened)]
    assert rows[1] == [*rows[0], opened.tokenizer.convert_tokens_to_ids("<think>")]


def test_demonstrations_and_beginnings_do_not_open_it_again(policies):
    plain, opened = (policy.encoder for policy in policies)
    both = [encoder.encode_responses([THINK], RECORDS[:1]) for encoder in (plain, opened)]
    (whole, mask), (rest, rest_mask) = both
    np.testing.assert_array_equal(whole[mask][1:], rest[rest_mask])
    for begun in ("<think> rows", "rows"):
        batch = opened.encode(RECORDS[:1], prefixes=[begun])
        text = opened.tokenizer.decode(batch.tokens[0][batch.mask[0]])
        assert text.endswith("assistant <think> rows")
    same = plain.encode(RECORDS[:1], prefixes=["<think> rows"])
    np.testing.assert_array_equal(same.tokens, batch.tokens)


def test_parser_and_spans_go_on_from_it(policies):
    """The same response, said whole and after a prompt that has begun it."""
    found = []
    for policy in policies:
        tokens, mask = policy.encoder.encode_responses([THINK], RECORDS[:1])
        (text,) = policy.texts(tokens, mask)
        spans = policy.spans.find(tokens, mask)
        words = [policy.tokenizer.decode(tokens[span]) for span in spans]
        found.append((parse(text), words))
    assert found[0] == found[1]
    parsed, words = found[0]
    assert (parsed.ok, parsed.reasoning, parsed.answer) == (True, "rows 3", "4")
    assert words == ["rows 3", "4"]


def test_a_response_that_was_begun_is_whole(policies):
    for policy in policies:
        tokens, mask = policy.encoder.encode_responses(
            ["3 </think> <answer> 4 </answer>"], RECORDS[:1]
        )
        (text,) = policy.whole_texts(["<think> rows"], tokens, mask)
        assert parse(text).reasoning == "rows 3"
    (text,) = policy.whole_texts(["rows"], tokens, mask)
    assert parse(text).reasoning == "rows 3"


# ------------------------------------------------------------------ the end of a turn


def test_demonstrations_end_as_the_template_ends_a_turn(checkpoint, tmp_path):
    """Gemma's tokenizer ends with one token, its chats with another."""
    path = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, path)
    encoder = PromptEncoder(read_tokenizer(path), read_processor(path))
    names = ("<|im_end|>", "<|endoftext|>")
    turn, text = map(encoder.tokenizer.convert_tokens_to_ids, names)
    assert encoder.end_id == encoder.tokenizer.eos_token_id == turn
    file = path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [text, turn], "pad_token_id": text}))
    tokenizer = read_tokenizer(path)
    tokenizer.eos_token = names[1]
    encoder = PromptEncoder(tokenizer, read_processor(path))
    tokens, mask = encoder.encode_responses([THINK], RECORDS[:1])
    assert tokens[mask][-1] == turn != tokenizer.eos_token_id
    # a template that ends no turn
    tokenizer.chat_template = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    assert PromptEncoder(tokenizer, read_processor(path)).end_id == text


@pytest.mark.parametrize("after", ["<end_of_utterance>\n", " <end_of_utterance>"])
def test_what_the_template_ends_a_turn_with_ends_a_response(after, checkpoint, tmp_path):
    """Idefics3's files name another end."""

    def change(template):
        assert template.count("<|im_end|>\n") == 1
        return template.replace("<|im_end|>\n", after)

    path = moved(checkpoint, tmp_path / "checkpoint", "chat_template.jinja", change)
    tokenizer, processor = read_tokenizer(path), read_processor(path)
    encoder = PromptEncoder(tokenizer, processor)
    # a word is no control token
    assert encoder.stop_ids == processor.config.eos_token_ids == (tokenizer.eos_token_id,)
    instead = "<|im_start|>"
    tokenizer = read_tokenizer(path)
    tokenizer.chat_template = tokenizer.chat_template.replace("<end_of_utterance>", instead)
    turn, end = tokenizer.convert_tokens_to_ids([instead, tokenizer.eos_token])
    encoder = PromptEncoder(tokenizer, processor)
    assert encoder.stop_ids == tuple(sorted((turn, end))) and encoder.end_id == turn
    model = dataclasses.make_dataclass("Model", [("config", object)])(processor.config)
    mesh = jax.make_mesh((1,), ("data",))
    policy = Policy(model, {}, tokenizer, encoder, SpanFinder(tokenizer, ""), mesh)
    tokens, mask = encoder.encode_responses([THINK], RECORDS[:1])
    assert tokens[mask][-1] == turn and parse(*policy.texts(tokens, mask)).ok
    with pytest.raises(ValueError, match="no token for a part of its response"):
        encoder.encode_responses([f"{THINK} {instead}"], RECORDS[:1])  # as a text it ends nothing
