"""Signs of self-correction in a completion: words of doubt and second looks, and answers given twice.

d1 (arXiv 2504.12216) reports that its models check and correct themselves, in "aha moments". This
counts what such moments look like on the page. It is a list of patterns, so it shows whether a habit of
writing grows, not whether the thought behind it is sound.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from d1ray.tasks.answers import CLOSING, OPENING, PLACEHOLDER, boxes

_SECOND_LOOK = (
    r"(?:check|verif|examin|evaluat|calculat|comput|consider|think|read|do)(?:e|y|s|es|ies|ed|ied|ing|ying)?"
)
_SPEAKER = (
    r"let me|let's|let us|i(?:'ll| will| should| must| need to| have to)?"
    r"|we(?:'ll| should| must| need to| can)?"
)


@dataclass(frozen=True)
class Sign:
    """One kind of sign: what it is called, what counts as it, and the pattern that finds it in lower case.

    ``pattern`` is None for the two that are about answers rather than words.
    """

    name: str
    counts: str
    pattern: re.Pattern[str] | None = None


SIGNS = (
    Sign(
        "wait",
        '"wait" that begins a sentence, or is followed by punctuation: not "wait 5 minutes"',
        re.compile(r"(?:^|[.!?:;\n])[ \t]*wait\b(?!\s+\d)|\bwait\s*(?:[,.!?…–—-]|\bno\b)"),
    ),
    Sign(
        "hesitation",
        '"hold on", "hmm", "oops", "uh-oh"',
        re.compile(r"\b(?:hold on|hmm+|oops|uh-oh)\b"),
    ),
    Sign("actually", '"actually"', re.compile(r"\bactually\b")),
    Sign(
        "check",
        '"let me check", "let\'s verify", "I should make sure", and the like',
        re.compile(rf"\b(?:{_SPEAKER})\s+(?:now |also |just |quickly )?(?:check|verify|confirm|make sure)\b"),
    ),
    Sign(
        "second look",
        '"recheck", "double-check", "re-evaluate", "reconsider", "check again", and the like',
        re.compile(
            rf"\b(?:re-?{_SECOND_LOOK}|double[- ]?check(?:s|ed|ing)?)\b"
            rf"|\b{_SECOND_LOOK}\s+(?:\w+\s+)?again\b"
        ),
    ),
    Sign(
        "mistake",
        '"mistake", "wrong", "incorrect", "an error", "not right", "does not work", "doesn\'t add up"',
        re.compile(
            r"\b(?:mistaken?|mistakes|wrong|incorrect(?:ly)?|an error|not (?:right|correct)"
            r"|(?:doesn't|does not|didn't|did not) (?:work|add up|match|fit))\b"
        ),
    ),
    Sign(
        "correction",
        '"correction", "let me correct", "let me fix", "I corrected"',
        re.compile(rf"\bcorrection\b|\b(?:{_SPEAKER})\s+(?:correct(?:ed)?|fix(?:ed)?)\b"),
    ),
    Sign(
        "another try",
        '"try again", "start over", "go back", "another approach", "a different way", "alternatively"',
        re.compile(
            r"\b(?:try(?:ing)? again|start(?:ing)? over|go(?:ing)? back|alternatively"
            r"|(?:another|a different) (?:approach|way|method|idea))\b"
        ),
    ),
    Sign("answers twice", "a second answer, between answer tags or in a box, that repeats the one before"),
    Sign(
        "changes its answer",
        "a second answer, between answer tags or in a box, that differs from the one before",
    ),
)


def count_signs(completion: str) -> dict[str, int]:
    """How often each of ``SIGNS`` is in a completion; signs that are not there are left out.

    Example:
        >>> count_signs("3 + 4 = 8. Wait, that is wrong. Let me check: 3 + 4 = 7.")
        {'wait': 1, 'check': 1, 'mistake': 1}
    """
    text = completion.lower().replace("’", "'")
    counts = {sign.name: len(sign.pattern.findall(text)) for sign in SIGNS if sign.pattern}
    answers = ["".join(answer.split()) for answer in answers_of(completion)]
    pairs = list(pairwise(answers))
    counts["answers twice"] = sum(before == after for before, after in pairs)
    counts["changes its answer"] = sum(before != after for before, after in pairs)
    return {name: count for name, count in counts.items() if count}


def answers_of(completion: str) -> list[str]:
    """Every answer a completion gives, in turn: what its answer tags hold, else its boxes.

    A box or tags that only repeat the instruction ("your answer", "...") are no answer.
    """
    tagged = [part.partition(CLOSING)[0] for part in completion.split(OPENING)[1:]]
    found = [(boxes(content) or [content])[-1] for content in tagged] or boxes(completion)
    return [answer.strip() for answer in found if not PLACEHOLDER.fullmatch(answer.strip())]
