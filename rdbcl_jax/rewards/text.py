"""What a reader sees of an answer: blank-looking characters and formatting are no content.

Every verifier reads through `seen` and `unwrapped`, gold answers and answers alike. Widths are
folded (`Ａ` is A), but nothing that looks different becomes the same: `x²` is not x2, `№` not No.
"""

from __future__ import annotations

import re
import unicodedata

# what may stand before "the answer is", in any case
LEAD_IN = r"(?:(?:so|therefore|thus|hence),? )?"
# and before "answer"
THE_RIGHT = LEAD_IN + r",? ?(?:the |my )?(?:final |correct |right |best )?"

# letters and symbols by category, and blank to the eye: Hangul fillers and the empty braille cell
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
# marks that show nothing: joiners, inherent vowels, variation selectors
_HIDDEN = {0x034F, 0x17B4, 0x17B5, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
_WIDTHS = ("<wide>", "<narrow>")
_LONGEST_WRAPPED = 4096  # characters; a longer text keeps its formatting
_PAIRS = (
    *(("**", "**"), ("__", "__"), ("`", "`"), ("*", "*"), ("_", "_")),
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")),
    *(('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("「", "」")),
)
# a code block on its own, whose language is no content
_BLOCK = re.compile(
    r"```(?:(?:text|txt|plaintext|json|markdown|md|python|latex)\b(?= ))?([^`]+)```"
)
_COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|textrm|mathrm|mathbf|mbox|emph)\s*\{")


def visible(text: str) -> bool:
    """Whether a reader sees anything: a letter, digit, punctuation mark or symbol."""
    return any(unicodedata.category(c)[0] in "LNPS" and c not in _FILLERS for c in text)


def seen(text: str) -> str:
    """The text in one width, without invisible characters, its blanks as single spaces."""
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    return " ".join("".join(map(_seen, unicodedata.normalize("NFC", text))).split())


def unwrapped(text: str) -> str:
    """A `seen` text without Markdown, LaTeX and quotes round all of it, and a final full stop."""
    for _ in range(8):  # layers; more are no answer
        shorter = _without_pair(_without_stop(text))
        if shorter == text or not visible(shorter):
            return text
        text = shorter
    return text


def closing_brace(text: str, start: int) -> int:
    """Where the group closes whose brace opens at `start`; −1 if it does not."""
    depth = 0
    for found in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0 and found[0] == "}":
            return start + found.start()
    return -1


def _seen(c: str) -> str:
    if ord(c) in _HIDDEN:
        return ""
    if c.isspace() or c in _FILLERS:
        return " "
    if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn"):
        return ""
    width, _, code = unicodedata.decomposition(c).partition(" ")
    return chr(int(code, 16)) if width in _WIDTHS else c


def _without_stop(text: str) -> str:
    return text[:-1].rstrip() if text.endswith((".", "。")) and text.strip(".") else text


def _without_pair(text: str) -> str:
    if len(text) > _LONGEST_WRAPPED:
        return text
    if (block := _BLOCK.fullmatch(text)) and visible(block[1]):
        return block[1].strip()
    for left, right in _PAIRS:
        inside = text[len(left) : -len(right)]
        if text.startswith(left) and text.endswith(right) and inside and left not in inside:
            return inside.strip()
    command = _COMMAND.match(text)
    if command and closing_brace(text, command.end() - 1) == len(text) - 1:
        return text[command.end() : -1].strip()
    return text
