"""Verifiers of short texts: the same words, yes or no, the letter of an option, sequences, jigsaws.

Each pair of functions is what `verifiers` registers; what the first one says, in its docstring, is
the rule for answers and gold answers alike.
"""

from __future__ import annotations

import re

from rdbcl_jax.rewards.numerals import without_thousands
from rdbcl_jax.rewards.text import THE_RIGHT, seen, unwrapped, visible

LONGEST = 4096  # characters of an answer that is searched for a second one

_LEAD = re.compile(
    rf"^{THE_RIGHT}"
    r"(?:answer|option|choice)(?: is| would be)?(?: ?: ?| )(?:option |choice )?",
    re.I,
)
# **Answer:** B
_MARKED_LEAD = re.compile(
    r"^(\*\*|__)([a-z ]{0,30}(?:answer|option|choice)s?(?: is| are)? ?:?)\1", re.I
)


def normalise(text: str) -> str:
    """The text without differences of case, blanks, width, formatting or a final full stop.

    Commas between the thousands of a number that is the whole text are none either.
    """
    return without_thousands(unwrapped(seen(text)).casefold())


# --- exact ---------------------------------------------------------------------------------------


def prepare_exact(gold: str) -> str:
    """The whole text, but for case, blanks, width, formatting, a final full stop, `1,000`."""
    if not visible(gold):
        raise ValueError("the gold answer is empty")
    return normalise(gold)


def compare_exact(answer: str, gold: str) -> float:
    return normalise(answer) == gold


# --- yes_no --------------------------------------------------------------------------------------

# a clause that may follow without a mark: yes it is
_VERB = (
    r"(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would|should|must)(?:n['’]t)?"
    r"|cannot|can['’]t|won['’]t"
)
_CLAUSE = (
    rf"(?:it|there|they|he|she|we|you|i|this|that|these|those)(?:['’](?:s|re)| (?:{_VERB}))\b.*"
    rf"|(?:the|an?|this|that|these|those|his|her|its|their|my|our|your|both|all)"
    rf"(?: [a-z'’-]+){{1,5}}? (?:{_VERB})\b.*"
)
_YES_NO = re.compile(
    r"(?P<word>yes|no)\b(?:[*_`\"')\]]*(?:[.!,;:]+| [–—-])\s*(?P<reason>.*)"
    rf"|[*_`\"')\]]* (?P<clause>{_CLAUSE}))?[.!]*",
    re.S,
)
_AGAINST = {
    "yes": re.compile(
        r"\b(?:no|not|never|none|neither|nor|false|cannot|nope|nah|nay|hardly|scarcely"
        r"|unlikely|untrue|doubtful|impossible|nothing|nobody)\b"
        r"|n['’]t\b|\b(?:is|are|was|were|does|do|did|has|have|had|ca|could|wo|would|should|must)nt\b"
    ),
    "no": re.compile(r"\b(?:yes|yep|yeah|yup|true)\b"),
}
_UNSURE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|sure|unsure|uncertain|unclear|know|guess|or|actually|wait"
    r"|but|however|unless|if|depends|sometimes|wrong|incorrect|instead|idea|rather|either)\b"
)


def prepare_yes_no(gold: str) -> str:
    """`yes` or `no`, alone or before a mark and a reason that says neither the other nor maybe."""
    if (word := _yes_no(gold)) is None:
        raise ValueError(f"expected yes or no, found {gold[:80]!r}")
    return word


def compare_yes_no(answer: str, gold: str) -> float:
    return _yes_no(answer) == gold


def _yes_no(text: str) -> str | None:
    text = bare(text).casefold()
    match = _YES_NO.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        return None
    reason = match["reason"] or match["clause"] or ""
    doubtful = _AGAINST[match["word"]].search(reason) or _UNSURE.search(reason)
    if reason and not re.search("[a-z]{2}", reason):  # No. 5
        return None
    return None if doubtful else match["word"]


# --- choice --------------------------------------------------------------------------------------

_LETTER = r"(?:[A-Z][.:)\]]?|\([A-Z]\)[.:]?|\[[A-Z]\][.:]?)"
# a text may follow a letter that is set off from it
_CHOICE = re.compile(
    rf"{_LETTER}|(?:{_LETTER}(?<![A-Z])|[A-Z](?:,| ?[–—]| -))\s+(?P<text>.+)", re.I | re.S
)
# what a text says of options, where it should be one
_REMARK = re.compile(
    r"\b(?:actually|wait|instead|rather|sorry|wrong|incorrect|correct|unsure|maybe|perhaps)\b"
    r"|\bi (?:pick|choose|think|mean|guess|believe|would|am)\b|\bnot sure\b|\bon second thought\b"
    r"|^(?:is|isn['’]t|was|are|or|and|nor|and/or|vs)\b|^[,;&/|]",
    re.I,
)
# Letters of options: I is a numeral, small ones are such where they stand as one
_ANY = "[A-HJ-Za-h]"
# those that a list among an option's text cannot hold: few questions have more than ten options, so
# that `A. P, Q and R` names points
_EARLY = "[A-HJa-h]"
_QUOTE = "[\"'“”‘’]"
_SECOND = re.compile(
    "|".join(
        [
            # alone, or between commas
            r"^[A-Z]\.?$",
            rf"(?:^|[,;])\s*{_EARLY}\s*(?:[,;]|[.!?]?$)",
            # in brackets, in quotes, emphasised, boxed, marked as options are
            r"[(\[][A-Z][)\]]|(?<![\w)\]}])[(\[][a-h][)\]]",
            rf"(?<![\w)*]){_QUOTE}{_ANY}[.]?{_QUOTE}",
            rf"(?<![\w)*`])(?P<mark>\*\*?|__?|`)[(\[]?{_ANY}[.)\]]*(?P=mark)",
            rf"\\boxed ?\{{ ?(?:\\text\w* ?\{{)?[(\[]?{_ANY}[.)\]]*\}}",
            r"\b[A-Z][):](?!\w)|\b[A-Z]\.(?=\s+\S)",
            # named as options are; `answer a question` names none
            r"\b(?i:options?|choices?|answers?)(?i: is)?:?\s+"
            r"(?:[A-Z]\b|[b-hj-z]\b(?!['’])|a(?=[.,;:!?]|$|\s+(?:is|was|holds)\b))",
            # spoken of
            r"\b(?:or|not|also|then|is|but|to|pick|choose)\s+[A-HJ-Z]\b|\b[Ii]t['’]s\s+[A-HJ-Z]\b",
            r"\band\s+[A-HJ]\b|\b[A-HJ]\s+and\b",
            r"\b[A-HJ-Z]\s+(?:is|are|was|or|too|also)\b",
            r"\b(?:not|but|is|it['’]s|pick|choose)\s+[a-h](?=[.,;:!?]|$)",
            r"\b[b-h]\s+(?:is|was)\s+(?:right|the (?:right|answer|one))\b",
            r"^[A-HJ-Za-h](?:[):]| ?[–—]| -)\s|(?:^|[,;]\s*)[a-h][.)]\s",
            r"(?:^|[,;.]\s*)[A-HJ-Z]\s+(?:holds|fits|works|seems|would|should|does)\b",
        ]
    )
)


def prepare_choice(gold: str) -> str:
    """One letter, as `B`, `(b)`, `[B]`, `B.`, `**B**`, `Answer: B` or `B) a dog`.

    The text after a letter is not compared; it must not speak of another option, or of options.
    """
    if (letter := _choice(gold)) is None:
        raise ValueError(f"expected the letter of an option, found {gold[:80]!r}")
    return letter


def compare_choice(answer: str, gold: str) -> float:
    return _choice(answer) == gold


def _choice(text: str) -> str | None:
    text = bare(text)
    match = _CHOICE.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        return None
    option = match["text"] or ""
    if _REMARK.search(option) or _SECOND.search(option):
        return None
    return text.lstrip("([")[0].upper()


def bare(text: str) -> str:
    """A text without formatting round it, round its first word, and without `the answer is`, which
    may be set apart by formatting of its own."""
    text = re.sub("^#{1,6} ", "", unwrapped(seen(text)))  # a heading
    text = _MARKED_LEAD.sub(r"\2", unwrapped(text))
    text = unwrapped(_LEAD.sub("", text))
    # **B**. a dog
    return re.sub(r"^(\*\*|__|`)([^*_`]{1,4})\1", r"\2", text)


# --- sequence ------------------------------------------------------------------------------------


def prepare_sequence(gold: str) -> list[str]:
    """Tokens between commas or semicolons, else between blanks, without brackets and quotes."""
    if not (tokens := _tokens(gold)):
        raise ValueError(f"expected a list of tokens, found {gold[:80]!r}")
    return tokens


def compare_sequence(answer: str, gold: list[str]) -> float:
    """The fraction of places that agree; missing and superfluous tokens both count as wrong."""
    tokens = _tokens(answer)
    right = sum(a == b for a, b in zip(tokens, gold, strict=False))
    return right / max(len(tokens), len(gold))


def _tokens(text: str) -> list[str]:
    text = unwrapped(unwrapped(seen(text)).casefold().strip("[](){} "))
    parts = re.split("[,;]", text) if re.search("[,;]", text) else text.split()
    return [token for part in parts if visible(token := part.strip(" '\"[]()"))]


# --- jigsaw --------------------------------------------------------------------------------------

_BETWEEN = re.compile(r"\s*(?:->|→|[,;|>])\s*|\s+-\s+|(?<=[0-9])-(?=[0-9])|\s+")
MOST_PIECES = 1024


def prepare_jigsaw(gold: str) -> list[int]:
    """A permutation of 1..n, between blanks, commas or arrows, in brackets or none, row by row."""
    numbers = _permutation(gold)
    if numbers is None or len(numbers) < 2:
        raise ValueError(f"expected a permutation of 1..n, found {gold[:80]!r}")
    return numbers


def compare_jigsaw(answer: str, gold: list[int]) -> float:
    """The fraction of pieces in their place (arXiv:2506.23508); 0 unless a permutation of 1..n."""
    numbers = _permutation(answer)
    if numbers is None or len(numbers) != len(gold):
        return 0.0
    return sum(a == b for a, b in zip(numbers, gold, strict=True)) / len(gold)


def _permutation(text: str) -> list[int] | None:
    text = unwrapped(seen(text))
    if not _balanced(text):
        return None
    text = re.sub(r"[\[({]\s*|\s*[\])}]", "", text).strip()
    parts = _BETWEEN.split(text)
    if len(parts) > MOST_PIECES or not all(re.fullmatch("[0-9]{1,4}", part) for part in parts):
        return None
    numbers = [int(part) for part in parts]
    return numbers if sorted(numbers) == list(range(1, len(numbers) + 1)) else None


def _balanced(text: str) -> bool:
    """Whether every bracket is closed by one of its kind."""
    open_ones: list[str] = []
    for c in text:
        if c in "([{":
            open_ones.append(c)
        elif c in ")]}" and (not open_ones or open_ones.pop() + c not in ("()", "[]", "{}")):
            return False
    return not open_ones
