"""Counter-based randomness: every random number is a pure function of (seed, stream, counters).

No global seeding and no generator state that would have to be saved: the same key gives the same
numbers in any process, in any order, in any batch. That is what makes a lost call safe to issue
again, and a run with three generators bit-identical to a run with one.

Streams in use, with their counters:

| stream                       | counters                          | draws                                   |
|------------------------------|-----------------------------------|-----------------------------------------|
| ``"init"``                   | parameter index                   | initial weights                         |
| ``"examples/train/<stage>"`` | example index[, redraws]          | the puzzle at that index                |
| ``"examples/<split>"``       | draw index (run seed 0)           | evaluation sets, the same for every run |
| ``"shuffle/<stage>"``        | epoch                             | the order of a file's rows              |
| ``"demonstration"``          | phase, example index              | how a demonstration is corrupted        |
| ``"demonstration order"``    | phase, epoch                      | the order of a limited set of them      |
| ``"sft noise"``              | phase, step, row                  | forward-process t and mask              |
| ``"sft validation"``         | row (run seed 0)                  | the same, of the validation loss        |
| ``"sampler"``                | group id, rollout index           | one or two uniforms per step, position  |
| ``"prompt mask"``            | group id, inner, [rollout[, view]]| the randomly masked prompt              |
| ``"estimator"``              | group id, inner update, rollout   | what an estimator's views hide          |
| ``"sequence bound"``         | place among the requests          | the masks of a Monte-Carlo likelihood   |
| ``"estimator ratio"``        | group id, rollout                 | where UniGRPO's share of masks starts   |
"""

import hashlib

import numpy as np


def generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """A Philox generator keyed by ``(seed, stream, *counters)``.

    Args:
        seed: the run's seed.
        stream: what the numbers are for; different streams are independent.
        counters: position within the stream, e.g. group id and rollout index.

    Example:
        >>> a = generator(0, "sampler", 7, 1).random(3)
        >>> b = generator(0, "sampler", 7, 1).random(3)
        >>> bool((a == b).all())
        True
    """
    key = repr((int(seed), stream, *(int(c) for c in counters))).encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
