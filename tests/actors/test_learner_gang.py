"""Which error of a gang's ranks is told: the one that came first, not what the others say of it."""

import errno
from random import Random

import pytest
from simulated_ray import Ref, SimulatedRay, Task, died, task_error

from actors import first_error, learner_gang
from actors.failures import LearnerLost, NoRoom, ObjectsLost
from actors.learner_gang import LearnerGang
from d1ray.config.errors import RunFailed

ECHO = task_error(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2131"))
FULL = task_error(OSError(errno.ENOSPC, "No space left on device"))
MEMORY = task_error(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
STICKY = task_error(RuntimeError("CUDA error: an illegal memory access was encountered"))
LOST = task_error(ObjectsLost("rollouts of step 3 are lost"))
BUG = task_error(TypeError("a bug"))
REFUSED = task_error(
    RunFailed(
        "the checkpoint nccl-test/step-00003 cannot be written: Connection reset by peer; make room there"
    )
)
NEVER = None


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch):
    """``told(*errors)``: what the gang raises when its ranks end so, one second after the other."""

    def raised(*errors: Exception | None) -> Exception:
        ray = SimulatedRay(Random(0), longest_s=1000.0)
        monkeypatch.setattr(learner_gang, "ray", ray)
        monkeypatch.setattr(first_error, "ray", ray)
        monkeypatch.setattr(learner_gang, "time", ray)
        gang = LearnerGang.__new__(LearnerGang)
        gang.deadline_s = 100.0
        refs = [Ref() for _ in errors]
        for rank, error in enumerate(errors):
            if error is not NEVER:
                task = Task("learn", (), [refs[rank]])
                ray.after(1.0 + rank, lambda task=task, error=error: ray.end(task, error=error))
        with pytest.raises(Exception) as ended:
            gang._of_first(refs, "learn")
        return ended.value

    return raised


@pytest.mark.parametrize("errors", [(FULL, ECHO), (ECHO, FULL), (FULL, NEVER), (FULL,)])
def test_a_full_disk_is_told_whichever_rank_is_heard_first(told, errors):
    error = told(*errors)
    assert isinstance(error, RunFailed) and not isinstance(error, LearnerLost)
    rank = errors.index(FULL)
    assert str(error).startswith(
        f"learner rank {rank} in 'learn': OSError: [Errno 28] No space left on device"
    )
    assert "the same command goes on" in str(error)


@pytest.mark.parametrize("errors", [(MEMORY, ECHO), (ECHO, MEMORY), (MEMORY, NEVER)])
def test_too_little_memory_names_the_settings(told, errors):
    error = told(*errors)
    assert isinstance(error, RunFailed) and not isinstance(error, LearnerLost)
    assert "ran out of memory" in str(error) and "rl.micro_batch_tokens" in str(error)


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ((STICKY, ECHO), "learner rank 0 in 'learn': RuntimeError: CUDA error"),
        ((ECHO, STICKY), "learner rank 1 in 'learn': RuntimeError: CUDA error"),
        ((ECHO, died()), "learner rank 0 lost another in 'learn'"),
        ((died(), ECHO), "learner rank 0 died in 'learn'"),
        ((ECHO, NEVER), "learner rank 0 lost another in 'learn'"),
        ((LOST, NEVER), "learner rank 0 lost another in 'learn'"),  # which has begun to learn without it
    ],
)
def test_what_a_new_gang_can_do_is_left_to_one(told, errors, said):
    error = told(*errors)
    assert isinstance(error, LearnerLost) and str(error).startswith(said)


def test_a_bug_is_told_at_once_as_it_is(told):
    assert told(BUG, NEVER).cause is BUG.cause
    assert told(REFUSED).cause is REFUSED.cause  # whatever it speaks of


@pytest.mark.parametrize("error", [ObjectsLost("lost"), NoRoom("full")])
def test_what_no_rank_could_fetch_is_left_to_the_caller(told, error):
    said = told(task_error(error), task_error(error))
    assert said.cause is error
