"""Several completions a problem: pass@k, majority vote, and intervals over problems."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from d1ray.run.summary import Interval, wilson


def pass_at(k: int, correct: Sequence[int], samples: int) -> list[float]:
    """For each problem the chance that k of its completions hold a right one (arXiv 2107.03374, Eq. 1).

    1 - C(n - c, k) / C(n, k): without bias for any k up to n.

    Args:
        correct: c of each problem.
        samples: n, the completions of each.

    Example:
        >>> pass_at(2, [0, 1, 3], samples=4)
        [0.0, 0.5, 1.0]
    """
    return [1 - math.comb(samples - c, k) / math.comb(samples, k) for c in correct]


def majority(parsed: Sequence[str | None], correct: Sequence[bool]) -> bool:
    """Whether the answer given most often is right; of equally frequent ones the first given counts.

    Completions without an answer do not vote. Answers are the same where they are written the same.
    """
    votes = Counter(answer for answer in parsed if answer is not None)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]  # the first given of equals: a Counter keeps the order
    return correct[parsed.index(winner)]


def counted_ks(samples: int) -> list[int]:
    """The k that are reported: 1, 2, 4, ... and the number of samples."""
    return sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})


def interval(values: Sequence[float], samples: int) -> Interval:
    """95 % interval of the mean of per-problem values in [0, 1], over the draw of the problems.

    Wilson's, for the number of independent trials that would vary as much: m(1 - m) / (s² / n), at least the
    n problems and at most all completions.
    """
    n, mean = len(values), float(np.mean(values))
    variance = float(np.var(values, ddof=1)) if n > 1 else 0.0
    largest = n * samples
    trials = min(n * mean * (1 - mean) / variance, largest) if variance else largest if 0 < mean < 1 else n
    trials = max(trials, n)
    return wilson(mean * trials, trials)
