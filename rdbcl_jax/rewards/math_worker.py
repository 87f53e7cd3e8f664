"""The child process of `mathematics`: reads `[gold, answer]` in JSON, one question a line.

Run as a script it imports math_verify alone, neither this package nor jax, so it starts quickly.
"""

from __future__ import annotations

import functools
import json
import re
import signal
import sys

CPU_SECONDS = 2.0  # for one question; ordinary ones take milliseconds
MEMORY_BYTES = 2 << 30

# Latin words of three letters and more are prose unless they name a function: math_verify would
# fish "7" out of "the answer is 7", and read "gibberish" as a product of letters
_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{\s*[A-Za-z]*\s*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{3,}")
_FUNCTION = re.compile(
    "sqrt|abs|a?(?:rc)?(?:sin|cos|tan)h?|cot|sec|csc|log|exp|lim|max|min|gcd|lcm|mod|det|inf"
    "|[pb]?matrix|cases|begin|end"
)
_SEVERAL = re.compile(r"\$|[0-9]\s+[0-9]")  # "1 2 3" would be read as a sum
_PLAIN_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")


@functools.lru_cache(maxsize=4096)
def expression(text: str) -> list:
    """The one expression that `text` consists of, as math_verify's candidates; [] if none."""
    from math_verify import LatexExtractionConfig, parse

    text = _PLAIN_PI.sub(r"\\pi", _bare(text))
    words = _WORD.findall(_COMMAND.sub(" ", text))
    if not text or _SEVERAL.search(text) or not all(map(_FUNCTION.fullmatch, words)):
        return []
    return parse(
        f"${text}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",  # otherwise any string would equal itself
        parsing_timeout=None,
    )


def equal(gold: str, answer: str) -> bool:
    from math_verify import verify

    gold_expression, answer_expression = expression(gold), expression(answer)
    if not gold_expression or not answer_expression:
        return False
    return verify(gold_expression, answer_expression, timeout_seconds=None)


def _bare(text: str) -> str:
    """Without one surrounding pair of $, $$, \\( \\), \\[ \\] or \\boxed{ }."""
    text = text.strip().removesuffix(".").strip()
    for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left + right):
            text = text[len(left) : -len(right)].strip()
            break
    boxed = re.fullmatch(r"\\boxed\s*\{(.*)\}", text, re.DOTALL)
    return boxed[1].strip() if boxed and r"\boxed" not in boxed[1] else text


def _limit_memory():
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):  # not on this system: the CPU limit remains
        pass


def main():
    import logging

    import math_verify  # noqa: F401  before the clock runs

    logging.disable(logging.CRITICAL)
    _limit_memory()
    print("ready", flush=True)
    for line in sys.stdin:
        # CPU time, so that a busy machine changes no verdict; with no handler the kernel ends the
        # process, even inside one long multiplication where Python would not look at signals
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            verdict = equal(*json.loads(line))
        except Exception:  # sympy raises nearly everything; whatever fails is not equal
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("equal" if verdict else "different", flush=True)


if __name__ == "__main__":
    main()
