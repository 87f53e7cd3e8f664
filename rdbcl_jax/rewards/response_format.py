"""The response format: its one parser, shared by reward and evaluation, and its writer.

A response is exactly one non-empty `<think>…</think>` followed by exactly one non-empty
`<answer>…</answer>`, with nothing that can be seen before, between and after. Whatever else a
response holds is a parse failure, and a parse failure has no answer: nothing is ever extracted
from malformed text, so that evaluation cannot be kinder than the reward was.
"""

from __future__ import annotations

import dataclasses
import re

from rdbcl_jax.rewards.text import visible

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_LAYOUT = re.compile(
    r"(?P<before>.*)<think>(?P<reasoning>.*)</think>"
    r"(?P<between>.*)<answer>(?P<answer>.*)</answer>(?P<after>.*)",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A parsed response. `reasoning` and `answer` are stripped, and empty unless `ok`.

    `problem` says what was wrong, None where nothing was. Its values are a small fixed
    vocabulary, so that they can be counted.
    """

    reasoning: str
    answer: str
    ok: bool
    problem: str | None = None


def parse(text: str) -> Parsed:
    """Splits a response into reasoning and answer; never raises."""
    for tag in TAGS:
        if (count := text.count(tag)) != 1:
            return _failure(f"no {tag}" if count == 0 else f"more than one {tag}")
    match = _LAYOUT.fullmatch(text)
    if match is None:
        return _failure("tags in the wrong order")
    for part, place in (
        ("before", "before <think>"),
        ("between", "between </think> and <answer>"),
        ("after", "after </answer>"),
    ):
        if visible(match[part]):
            return _failure(f"text {place}")
    for part, tag in (("reasoning", "<think>"), ("answer", "<answer>")):
        if not visible(match[part]):
            return _failure(f"nothing inside {tag}")
    return Parsed(match["reasoning"].strip(), match["answer"].strip(), True)


def in_format(reasoning: str, answer: str) -> str:
    """The response that `parse` splits into the two."""
    return f"<think> {reasoning} </think> <answer> {answer} </answer>"


def _failure(problem: str) -> Parsed:
    return Parsed("", "", False, problem)
