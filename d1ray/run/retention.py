"""Which rollouts a long run keeps: the last steps, and steps at equal distances over all that came before."""

from collections.abc import Iterable


def superfluous(steps: Iterable[int], newest: int, keep: int) -> list[int]:
    """The steps up to ``newest`` whose rollouts go, so that at most ``keep`` stay.

    The last half of ``keep`` stay, and of all others each whose number is a multiple of a power of two, the
    smallest that leaves few enough. What goes once would go later as well, so that it does not matter how
    often this is asked.

    Example:
        >>> superfluous(range(1, 21), newest=20, keep=8)
        [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15]
    """
    spread = keep // 2
    recent = newest - (keep - spread)
    apart = 1
    while recent // apart > spread:
        apart *= 2
    return [step for step in steps if step <= recent and (step % apart or not spread)]
