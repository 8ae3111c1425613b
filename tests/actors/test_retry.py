"""The whole table of what becomes of a call: over all short histories, without Ray and without a clock."""

import itertools
from collections.abc import Sequence

import pytest

from actors.call import ITS_PLACE_S, NEXT, Call, Status, Try
from actors.failures import Kind
from actors.retry import BUDGETS, PASSING, PLACES, Answer, answer

DEADLINE_S = 10.0
PER_CALL = [kind for kind in Kind if kind not in PASSING]


def history(*kinds: Kind, every_s: float = 1.0) -> list[Try]:
    return [Try(0, 0, False, kind, "said", i * every_s) for i, kind in enumerate(kinds)]


@pytest.mark.parametrize("others_done", [True, False])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_every_history_of_five_tries_has_the_answer_of_its_last_kind(
    others_done: bool, elsewhere: bool
) -> None:
    for length in range(1, 6):
        for kinds in itertools.product(Kind, repeat=length):
            last = kinds[-1]
            got = answer(history(*kinds), others_done, elsewhere, DEADLINE_S)
            if last in PASSING:
                assert got is Answer.AGAIN  # four seconds at most
                continue
            budget = BUDGETS[last] * (PLACES if elsewhere and last in ITS_PLACE_S else 1)
            if kinds.count(last) < budget:
                assert got is Answer.AGAIN
            elif last is Kind.GROUP or others_done:
                assert got is Answer.DROP
            else:
                assert got is Answer.END


@pytest.mark.parametrize("kind", PER_CALL)
def test_a_budget_is_of_its_own_kind(kind: Kind) -> None:
    others: Sequence[Kind] = [other for other in PER_CALL if other is not kind] * 50
    spent = [kind] * (BUDGETS[kind] - 1)
    assert answer(history(*others, *spent), True, False, DEADLINE_S) is Answer.AGAIN
    assert answer(history(*others, *spent, kind), True, False, DEADLINE_S) is Answer.DROP


def test_room_is_waited_for_until_the_deadline_and_from_the_last_time_there_was_some() -> None:
    full = [Kind.NO_ROOM] * 11
    assert answer(history(*full), True, True, DEADLINE_S) is Answer.AGAIN
    assert answer(history(*full, Kind.NO_ROOM), True, True, DEADLINE_S) is Answer.END
    interrupted = [*full, Kind.LOST, *full]
    assert answer(history(*interrupted), True, True, DEADLINE_S) is Answer.AGAIN


def test_a_machine_s_trouble_is_waited_out_too_and_then_costs_the_group_or_the_run() -> None:
    trouble = [Kind.SYSTEM] * 11
    assert answer(history(*trouble), True, True, DEADLINE_S) is Answer.AGAIN
    assert answer(history(*trouble, Kind.SYSTEM), True, True, DEADLINE_S) is Answer.DROP
    assert answer(history(*trouble, Kind.SYSTEM), False, True, DEADLINE_S) is Answer.END


def test_a_group_that_fails_at_one_place_is_tried_at_the_others() -> None:
    twice = history(Kind.GROUP, Kind.GROUP)
    assert answer(twice, True, True, DEADLINE_S) is Answer.AGAIN
    assert answer(twice, True, False, DEADLINE_S) is Answer.DROP


def test_a_call_goes_only_where_its_states_lead() -> None:
    for status in Status:
        for other in Status:
            call = Call(None, None, status)  # type: ignore[arg-type]
            call.request = _Request()  # type: ignore[assignment]
            if other in NEXT[status]:
                call.becomes(other)
                assert call.status is other
            else:
                with pytest.raises(AssertionError, match="group 3 cannot become"):
                    call.becomes(other)
    reachable, ends = {Status.WAITING}, {status for status in Status if not NEXT[status]}
    for _ in Status:
        reachable |= {after for status in reachable for after in NEXT[status]}
    assert reachable == set(Status) and ends == {Status.RELEASED}


class _Prompt:
    group_id = 3


class _Request:
    prompts = (_Prompt(),)
