"""What becomes of a call whose try has ended badly: a pure function of its tries and the clock."""

from collections.abc import Sequence
from enum import Enum

from actors.call import ITS_PLACE_S, Try
from actors.failures import Kind

# Tries of one call that may end so. They are counted apart: a spot node that is taken back says nothing about
# the group, a group that no scorer can read nothing about the nodes.
BUDGETS = {Kind.PREEMPTED: 50, Kind.LOST: 5, Kind.DEVICE: 4, Kind.MEMORY: 4, Kind.GROUP: 2}
PLACES = 4
PASSING = frozenset({Kind.NO_ROOM, Kind.SYSTEM})  # what may be over a little later


class Answer(Enum):
    """AGAIN: it is tried again, at another place if one is up. DROP: the call is given up, and the run goes
    on. END: so is the run."""

    AGAIN = "again"
    DROP = "drop"
    END = "end"


def answer(tries: Sequence[Try], others_done: bool, elsewhere: bool, deadline_s: float) -> Answer:
    """What becomes of a call after its last try.

    Args:
        tries: all that ended badly, in order.
        others_done: whether other calls have ended well since its first try began: then it is not
            everything that fails.
        elsewhere: whether there is a place of the kind that failed at which it has not.
        deadline_s: longest time over which what may pass may last.

    ================  ====================================  ============================================
    last try          tries left, or time                   none
    ================  ====================================  ============================================
    no room           AGAIN until ``deadline_s`` are over   END
    system            AGAIN until ``deadline_s`` are over   DROP if others are done, else END
    group             AGAIN, and ``elsewhere`` (up to       DROP: it fails everywhere
                      ``PLACES`` budgets)
    device, memory    AGAIN, and ``elsewhere``, as above    DROP if others are done: it is what devices
                                                            fail of; else END
    preempted, lost   AGAIN                                 DROP if others are done: it is what its
                                                            actors die of; else END
    ================  ====================================  ============================================
    """
    last = tries[-1]
    if last.kind in PASSING and last.at - in_a_row_since(tries) <= deadline_s:
        return Answer.AGAIN
    if last.kind in PASSING:
        return Answer.DROP if others_done and last.kind is Kind.SYSTEM else Answer.END
    spent, budget = sum(one.kind is last.kind for one in tries), BUDGETS[last.kind]
    if last.kind in ITS_PLACE_S and elsewhere:
        budget *= PLACES
    if spent < budget:
        return Answer.AGAIN
    return Answer.DROP if others_done or last.kind is Kind.GROUP else Answer.END


def in_a_row_since(tries: Sequence[Try]) -> float:
    """When the unbroken row of tries began that ended as the last one did."""
    since = tries[-1].at
    for one in reversed(tries):
        if one.kind is not tries[-1].kind:
            break
        since = one.at
    return since
