"""Span masks against the text they must cover, for word-level and byte-level BPE tokenizers."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rdbcl_jax.rewards.response_format import TAGS, parse
from rdbcl_jax.rewards.spans import SpanFinder

TEXT = "<think>\nthe café adds 3 and 4 , so 7</think>\n\n<answer>7</answer>"
SPECIAL = {"eos_token": "<|end|>", "pad_token": "<|end|>"}  # pad equals eos, as it may


def bpe(merges=(), **kwargs):
    """Byte-level BPE with these merges and no others."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|end|>", *alphabet, *("".join(pair) for pair in merges)]
    vocab = {word: i for i, word in enumerate(words)}
    return _byte_level(Tokenizer(models.BPE(vocab=vocab, merges=list(merges))), **kwargs)


def trained_bpe():
    """Byte-level BPE trained on a small text; whole tags become tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [TEXT] * 3, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet)
    )
    return _byte_level(tokenizer)


def _byte_level(tokenizer, **kwargs):
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, **kwargs)


def word_level(**kwargs):
    words = [*TAGS, "the", "adds", "3", "4", "7", "and", ",", "so", "<", "think>", "<|end|>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=","))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, **kwargs)


# tokens that reach over tag borders: ">\n", "7</", ">3", "><"
BORDERS = bpe([(">", "Ċ"), ("<", "/"), ("7", "</"), (">", "3"), (">", "<")])
TRAINED = trained_bpe()


def find(tokenizer, text):
    """Tokens of a text with their two masks, one row."""
    ids = np.array([tokenizer(text, add_special_tokens=False)["input_ids"]])
    reasoning, answer = SpanFinder(tokenizer).find(ids, np.ones_like(ids, bool))
    return ids[0], reasoning[0], answer[0]


def spans(tokenizer, text):
    ids, reasoning, answer = find(tokenizer, text)
    return tokenizer.decode(ids[reasoning]), tokenizer.decode(ids[answer])


def test_word_level_spans_are_exact():
    text = "<think> the 3 and 4 , so 7 </think> <answer> 7 </answer> <|end|>"
    assert spans(word_level(), text) == ("the 3 and 4 , so 7", "7")


def test_word_level_words_do_not_join_into_a_tag():
    assert spans(word_level(), "< think> 3 4 </think> <answer> 7 </answer>") == ("", "7")


def test_tags_that_are_special_tokens_are_still_tags():
    tags = [AddedToken(tag, special=True) for tag in TAGS]
    tokenizer = bpe(additional_special_tokens=tags)
    assert len(tokenizer("<think>", add_special_tokens=False)["input_ids"]) == 1
    reasoning, answer = spans(tokenizer, "<think>so 7</think><answer>7</answer><|end|>")
    assert (reasoning, answer) == ("so 7", "7")


def test_byte_level_spans_with_tags_of_several_tokens():
    assert spans(bpe(), TEXT) == ("\nthe café adds 3 and 4 , so 7", "7")


def test_a_token_across_a_tag_border_counts_as_content():
    tokenizer = BORDERS
    ids, reasoning, answer = find(tokenizer, "<think>\nso 7</think><answer>3</answer>")
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    assert {">Ċ", "7</", ">3"} <= set(tokens)
    assert tokens[np.flatnonzero(reasoning)[0]] == ">Ċ"
    assert tokens[np.flatnonzero(reasoning)[-1]] == "7</"
    assert tokens[np.flatnonzero(answer)[0]] == ">3"


def test_a_token_across_two_tags_is_no_content():
    tokenizer = BORDERS
    ids, reasoning, answer = find(tokenizer, "<think></think><answer></answer>")
    assert "><" in tokenizer.convert_ids_to_tokens(ids.tolist())
    assert not reasoning.any() and not answer.any()


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think> the 3", "the 3", ""),  # truncated
        ("<think>", "", ""),
        ("the 3", "", ""),
        ("<answer> 7", "", "7"),
        ("3 </think> <answer> 7 </answer>", "", "7"),
        ("<think> 3 </think> <answer> 7 4", "3", "7 4"),
        ("<think> 3 <answer> 7 </answer>", "3", "7"),  # </think> forgotten
        (
            "<think> 3 <answer> 4 </answer> </think> <answer> 7 </answer>",
            "3 <answer> 4 </answer>",
            "7",
        ),
        ("<answer> 4 </answer> <think> 3 </think>", "3", ""),
        (
            "<think> 3 </think> <think> 4 </think> <answer> 7 </answer> <answer> 4 </answer>",
            "3",
            "7",
        ),
    ],
)
def test_malformed_responses(text, reasoning, answer):
    assert spans(word_level(), text) == (reasoning, answer)


def test_special_tokens_are_never_content():
    _, reasoning, _ = find(word_level(), "<think> the 3 <|end|>")
    assert reasoning.tolist() == [False, True, True, False]


def test_only_the_mask_ends_a_response_not_pad_ids():
    tokenizer = word_level()
    tail = tokenizer("<think> the 3 </think> <answer> 7 </answer>")["input_ids"]
    head = tokenizer("<think> the 3")["input_ids"]
    tokens = np.array([head + tail, head + [tokenizer.pad_token_id] * len(tail)])
    mask = np.arange(tokens.shape[1]) < len(head)
    reasoning, answer = SpanFinder(tokenizer).find(tokens, np.stack([mask, mask]))
    assert reasoning.tolist() == [[False, True, True] + [False] * len(tail)] * 2
    assert not answer.any()


def test_ids_beyond_the_tokenizer_are_nothing():
    tokenizer = word_level()
    ids = tokenizer("<think> the 3")["input_ids"]
    tokens = np.array([[*ids, len(tokenizer), 10**6, -1]])
    reasoning, _ = SpanFinder(tokenizer).find(tokens, np.ones_like(tokens, bool))
    assert reasoning.tolist() == [[False, True, True, False, False, False]]


def test_shapes_lead_with_anything():
    tokenizer = word_level()
    ids = np.array(tokenizer("<think> the 3 </think>")["input_ids"])
    tokens = np.broadcast_to(ids, (2, 3, 4))
    reasoning, answer = SpanFinder(tokenizer).find(tokens, np.ones((2, 3, 4), bool))
    assert reasoning.shape == answer.shape == (2, 3, 4)
    assert reasoning.sum() == 12
    empty = SpanFinder(tokenizer).find(np.zeros((0, 4), int), np.zeros((0, 4), bool))
    assert empty[0].shape == (0, 4)


CONTENT = st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=20)


@pytest.mark.parametrize("tokenizer", [BORDERS, TRAINED])
@given(reasoning=CONTENT, between=st.sampled_from(["", "\n", " "]), answer=CONTENT)
def test_spans_cover_what_the_parser_reads(tokenizer, reasoning, between, answer):
    text = f"<think>{reasoning}</think>{between}<answer>{answer}</answer>"
    parsed = parse(text)
    ids, in_reasoning, in_answer = find(tokenizer, text)
    assert parsed.reasoning in tokenizer.decode(ids[in_reasoning])
    assert parsed.answer in tokenizer.decode(ids[in_answer])
    assert not (in_reasoning & in_answer).any()
    # beyond the content there is at most a piece of a tag in the first and the last token
    for mask, content in ((in_reasoning, reasoning), (in_answer, answer)):
        inner = tokenizer.decode(ids[np.flatnonzero(mask)[1:-1]])
        assert "\ufffd" in inner or inner in content


def test_a_batch_takes_well_under_100_ms():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, len(TRAINED), (512, 1024))
    mask = np.arange(1024) < rng.integers(1, 1025, (512, 1))
    finder = SpanFinder(TRAINED)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        finder.find(tokens, mask)
        times.append(time.perf_counter() - start)
    print(f"512 x 1024 tokens: {1000 * min(times):.0f} ms")
    assert min(times) < 0.2  # about 0.02 here, 0.06 with a vocabulary of 150,000


@pytest.mark.parametrize("make", [word_level, trained_bpe])
def test_what_the_prompt_opened_is_continued(make):
    """The chat template has said `<think>`: responses begin inside their reasoning."""
    tokenizer = make()
    rest = "the 3 and 4 , so </think> <answer> 7 </answer>"
    cut_off = "the adds 3"
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (rest, cut_off)]
    length = max(map(len, rows))
    tokens = np.array([row + [0] * (length - len(row)) for row in rows])
    mask = np.arange(length) < np.array([[len(row)] for row in rows])
    reasoning, answer = SpanFinder(tokenizer, "<think>\n").find(tokens, mask)

    def said(row, span):
        return "".join(tokenizer.decode(tokens[row][span[row]]).split())

    assert said(0, reasoning) == "the3and4,so" and said(0, answer) == "7"
    assert said(1, reasoning) == "theadds3" and not answer[1].any()
    for without in SpanFinder(tokenizer).find(tokens, mask):
        assert not without[1].any()
