"""`d1ray train`: reinforcement learning (d1, arXiv 2504.12216) as one loop over references.

The driver starts calls and holds references; it never touches a tensor. Weights travel as an
argument of every generate call. With ``staleness=0`` a step's groups are sampled by the policy that
the step then updates; with more, slots for later steps fill while the learner learns.
"""

import time

from actors.failures import LearnerLost
from actors.gauges import Gauges
from d1ray.config.errors import ResourceError, RunFailed
from d1ray.programs.recovery import RestartLadder
from d1ray.programs.training import Job, Training, training_of
from d1ray.run import checkpoint
from d1ray.run.checkpoint import Unreachable
from d1ray.run.interrupt import GivenUp, Interrupted


def loop(run: Training) -> None:
    """The main loop; ``run.state`` always describes the steps that the learner has completed.

    Raises:
        Interrupted: a signal came, and no step is under way.
        GivenUp: patience with a step or validation under way is over.
        LearnerLost: the learner cannot go on.
    """
    rl, state = run.rl, run.state
    run.publish()
    if state.step == 0:
        run.log(run.validate())
    while state.step < rl.steps:
        started_at, started = time.time(), time.perf_counter()
        run.fill()
        taken, metrics = run.take()
        metrics |= run.learn(taken)
        state.step, state.cursor = state.step + 1, state.cursor + len(taken)
        metrics |= run.publish()
        run.release(taken)
        metrics |= {"started_step": started_at, "seconds_step": time.perf_counter() - started}
        if state.step % rl.validate_every == 0 or state.step == rl.steps:
            metrics |= run.validate()
        run.log(metrics)
        due = state.step in (state.best_step, rl.steps) or state.step % rl.checkpoint_every == 0
        if due or run.learner.is_leaving():
            run.save()


def reinforce(job: Job, gauges: Gauges | None = None) -> None:
    """Trains from the model folder ``job.start``; leaves the policy that validates best in ``models/rl``.

    ``gauges`` show live how full the buffer is. A learner that is lost is built anew and goes on from its
    newest checkpoint.

    Raises:
        Interrupted: a signal came; a checkpoint was written and the same call continues from it.
        GivenUp: a signal came, and what was under way did not end within half of ``cluster.grace_s``; the
            same call continues from the newest checkpoint there was.
    """
    ladder = RestartLadder(job.config.cluster.learner_restarts)
    while True:
        try:
            with training_of(job, ladder, gauges) as training:
                to_the_end(training)
            return
        except GivenUp as error:
            where = _newest(job)
            raise GivenUp(f"{error} (half of cluster.grace_s); the run goes on from {where}") from error
        except ResourceError as error:
            if ladder.rebuilds:  # the request was right: once there was a place
                raise RunFailed(str(error)) from error
            raise
        except LearnerLost as error:
            whole = checkpoint.latest(job.checkpoints)
            ladder.fell(error, checkpoint.step_of(whole) if whole else 0)
            job.progress.note(f"{error}; the learner starts again from its newest checkpoint")


def to_the_end(training: Training) -> None:
    """The loop, and then the model; a checkpoint where a signal or a failure ends it between steps."""
    try:
        loop(training)
        training.finish()
    except GivenUp:
        raise  # the ranks are amid a step: their weights belong to no checkpoint
    except Interrupted:
        training.save()
        training.finish_saving()
        raise
    except LearnerLost:
        raise
    except RunFailed:
        training.rescue()
        raise


def _newest(job: Job) -> str:
    """Where a run goes on, to be told on the way out."""
    try:
        return f"step {checkpoint.newest_step(job.checkpoints)}"
    except Unreachable:
        return "its newest checkpoint"
