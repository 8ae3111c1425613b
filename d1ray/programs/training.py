"""Training: one run of diffu-GRPO under way, and the verbs that the main loop (``train.loop``) is made of."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import ray

from actors.buffer import RolloutBuffer
from actors.call import Call
from actors.failures import NoRoom, ObjectsLost, RolloutError, StoreFull, one_line
from actors.gauges import Gauges
from actors.learner_gang import LearnerGang
from actors.policy import PolicyRef
from actors.pools import Pools, opened_pools
from d1ray.config.errors import RunFailed, UserError
from d1ray.config.rl import RLConfig
from d1ray.config.run import Config
from d1ray.models.tokenizer import load_tokenizer
from d1ray.programs.evaluate import Tokenizer, evaluate, prompt_of
from d1ray.programs.recovery import RestartLadder, refuse_to_begin_again
from d1ray.programs.step_metrics import Metrics, rollout_metrics
from d1ray.rl.mismatch import exact_sampling
from d1ray.rl.rollout import Prompt, Request
from d1ray.run import checkpoint
from d1ray.run.checkpoint import Place
from d1ray.run.folder import RunFolder
from d1ray.run.interrupt import Patience
from d1ray.run.progress import Progress, Stage
from d1ray.tasks.source import Data


@dataclass
class State:
    """What the driver has to remember, saved with every checkpoint.

    ``step`` outer steps are complete, ``cursor`` prompts are consumed. ``best_step`` is the step
    with the most validation examples solved (the earliest of equals); its checkpoint is kept.
    ``exact_decoding`` is set once a step's mean gap between fast and exact decoding is above the limit.
    """

    step: int = 0
    saved_step: int = -1
    cursor: int = 0
    incarnation: int = 0
    best_step: int = -1
    best_solved: float = -1.0
    exact_decoding: bool = False


@dataclass(frozen=True)
class Job:
    """What stays the same however often the learner is built."""

    config: Config
    start: Path  # the model's folder
    tokenizer: Tokenizer
    data: Data
    validation: Sequence[Prompt]
    run: RunFolder
    progress: Progress
    interrupt: Callable[[], bool]
    patience: Patience
    pools: Pools

    @property
    def rl(self) -> RLConfig:
        assert self.config.rl is not None
        return self.config.rl

    @property
    def checkpoints(self) -> Place:
        """Where they lie."""
        return self.config.checkpoint_root("rl")


@contextmanager
def job_of(
    config: Config,
    start: Path,
    data: Data,
    validation: Sequence[Prompt],
    run: RunFolder,
    progress: Progress,
    interrupt: Callable[[], bool],
) -> Iterator[Job]:
    """The job of training the model in ``start``, with pools that are up while the block runs.

    Raises:
        ResourceError: there is no place for actors that share GPUs.
    """
    patience = Patience(interrupt, config.cluster.grace_s / 2)
    with opened_pools(config, start, patience, progress.note) as pools:
        yield Job(
            config, start, load_tokenizer(start), data, validation, run, progress, interrupt, patience, pools
        )


@contextmanager
def training_of(job: Job, ladder: RestartLadder, gauges: Gauges | None) -> Iterator["Training"]:
    """A learner, built from the newest checkpoint, with an empty buffer.

    Raises:
        ResourceError: there is no place for the learner.
        LearnerLost: it died while it was built.
    """
    config, rl, progress = job.config, job.rl, job.progress
    if ladder.rebuilds:
        job.run.fence()  # the ranks before may still be there, out of reach
    resume = checkpoint.latest(job.checkpoints)
    if resume is None:
        refuse_to_begin_again(job.run, "rl", job.checkpoints)
    state = State(**checkpoint.load_state(resume)["driver"]) if resume else State()
    state.incarnation = ladder.begins(state.step, state.incarnation)
    job.run.truncate_metrics("rl", state.step or -1)
    job.run.set_rollouts_aside(state.step)
    slots = (rl.staleness + 1) * rl.prompts_per_step
    buffer = RolloutBuffer(
        job.pools.generators, job.pools.scorers, slots, config.cluster.deadline_s, note=progress.note
    )
    job.pools.rest()
    cluster = config.cluster
    placement_s = cluster.deadline_s if ladder.rebuilds else cluster.placement_s
    gang = LearnerGang(
        config,
        job.start,
        resume,
        state.incarnation,
        job.pools.places,
        job.patience,
        placement_s,
        progress.note,
    )

    def standing() -> dict[str, float]:
        return {**buffer.standing(), "learner_restarts": ladder.rebuilds, "steps": rl.steps}

    with (
        gauges.watching(standing) if gauges else nullcontext(),
        closing(gang) as learner,
        progress.stage(rl.algorithm.title, rl.steps, state.step) as stage,
    ):
        job.run.check()  # so what claims the ranks found are this run's
        yield Training(job, state, learner, buffer, stage)


class Training:
    """A learner and its buffer at work. ``train.loop`` calls the verbs, and alone advances ``state``."""

    def __init__(self, job: Job, state: State, learner: LearnerGang, buffer: RolloutBuffer, stage: Stage):
        self.job, self.rl, self.state = job, job.rl, state
        self.learner, self.buffer, self.stage = learner, buffer, stage
        self.policy: PolicyRef
        self._next = state.cursor  # the prompt that is generated next
        self.whole = True  # whether the learner's weights are those of ``state``, and its step is logged

    def publish(self) -> Metrics:
        """The learner's weights become the policy of what is generated from now on."""
        started_at, started = time.time(), time.perf_counter()
        self.policy = self.learner.publish(self.job.pools.generators)
        return {"started_publish": started_at, "seconds_publish": time.perf_counter() - started}

    def fill(self) -> None:
        """Every free slot begins to generate a prompt's group."""
        sampling = exact_sampling(self.rl.sampling) if self.state.exact_decoding else self.rl.sampling
        job, end = self.job, self.rl.steps * self.rl.prompts_per_step
        while self.buffer.has_slot() and self._next < end:
            example, limit = job.data.train(self._next), job.config.data.max_prompt_length
            prompt = prompt_of(job.tokenizer, example, self._next, limit)  # the group's id is its index
            request = Request((prompt,), self.rl.group_size, sampling, job.config.seed, likelihoods=self.rl)
            self.buffer.start(request, self.policy)
            self._next += 1

    def take(self) -> tuple[list[Call], Metrics]:
        """The next step's groups, when all are scored; decoding is exact from now on if it strayed too far.

        Raises:
            RolloutError: all were dropped, or none comes.
            Interrupted: a signal came.
        """
        taken = self.buffer.take(self.rl.prompts_per_step, self.job.interrupt)
        groups = self._kept(taken)
        metrics = rollout_metrics([group.metadata for group in groups], self.policy.version)
        metrics |= {"dropped_groups": len(taken) - len(groups), "reissued_calls": self.buffer.reissued}
        gap, limit, sampling = metrics.get("mismatch", 0.0), self.rl.mismatch.limit, self.rl.sampling
        if limit is not None and gap > limit:
            self.state.exact_decoding = True
            self._note(
                f"{sampling.decoding} decoding (cache {sampling.cache}) is {gap:.3g} nats a token from exact "
                f"decoding, above rl.mismatch.limit={limit:g}; rollouts are decoded exactly from the next "
                "ones on"
            )
        return taken, metrics

    def learn(self, taken: list[Call]) -> Metrics:
        """mu updates on the groups. Those whose tables were lost with a node, or have no room at the
        learner's, are generated again, the same.

        Raises:
            RolloutError: the learner has not got them within the buffer's deadline.
        """
        groups, step, buffer = [group for group in taken if not group.dropped], self.state.step, self.buffer
        rollouts = self.job.run.rollouts / f"step-{step + 1:05d}.parquet"
        began, again = time.monotonic(), False
        while True:
            self.job.pools.rest()
            self.whole = False
            try:
                metrics = self.learner.learn([g.table for g in groups], step, rollouts, buffer.tend)
                break
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, ObjectsLost | NoRoom):
                    raise
                self.whole = True  # no rank has learned anything
                if not again:
                    buffer.note(f"learning: {one_line(error)}; the rollouts are generated again")
                if (waited := time.monotonic() - began) > buffer.deadline_s:
                    if isinstance(error.cause, NoRoom):
                        raise StoreFull("the learner", waited) from error
                    raise RolloutError(f"{one_line(error)}, again and again for {waited:.0f} s") from error
            again = True
            buffer.again(groups)
            groups = buffer.take(len(groups), self.job.interrupt)
            for group in groups:
                if group.dropped:
                    raise RolloutError(f"{group.name}, generated again, {group.dropped}")
        if metrics["empty_batches"]:
            self._note("no update, because in each group all rewards are equal")
        return metrics

    def release(self, taken: list[Call]) -> None:
        """Their slots are free for groups of the new policy."""
        self.buffer.release(taken)

    def validate(self) -> Metrics:
        """The share of held-out examples that the policy solves, of those that were not given up; the best
        step so far is remembered.

        Raises:
            RolloutError: all were given up.
            GivenUp: a signal came, and patience is over.
        """

        def waits() -> bool:
            self.buffer.tend()  # its calls share the pools with the validation's
            return self.job.patience()

        started_at, started, state, job = time.time(), time.perf_counter(), self.state, self.job
        done = evaluate(job.pools, self.policy, job.validation, job.config, waits)
        for dropped in done.dropped:
            job.progress.note(f"validation after step {state.step} goes on without {dropped}")
        if not done.verdicts:
            raise RolloutError(f"all of the validation failed; {done.dropped[0]}")
        solved = sum(correct for correct, *_ in done.verdicts) / len(done.verdicts)
        if solved > state.best_solved and not done.dropped:  # or it might be the easier ones that are left
            state.best_step, state.best_solved = state.step, solved
        return {
            "validation_solved": solved,
            "validation_examples": len(done.verdicts),
            "started_validate": started_at,
            "seconds_validate": time.perf_counter() - started,
        }

    def log(self, metrics: Metrics) -> None:
        """Into the run folder, and onto the display.

        Raises:
            RunFailed: the step's metrics or rollouts could not be written.
        """
        learned = "seconds_step" in metrics  # not only validated
        if learned:
            metrics = metrics | {
                "broadcast_failures": self.learner.broadcasts.failures,
                "tokens_per_s": metrics["tokens"] / metrics["seconds_step"],
            }
        try:
            self.job.run.log({"stage": "rl", "step": self.state.step, **metrics})
        except OSError as error:
            where = error.filename or self.job.run.metrics_path
            raise RunFailed(
                f"{where} cannot be written: {error.strerror or error}; make room there"
            ) from error
        self.whole = True
        if learned:
            self.stage.update(self.state.step, metrics)
            if self.rl.keep_rollouts is not None:
                self.job.run.thin_rollouts(self.state.step, self.rl.keep_rollouts)
            if unwritten := self.learner.standing.unwritten:
                raise RunFailed(f"{unwritten}; make room there")

    def save(self) -> None:
        """Begins a checkpoint, unless that of this step is written or under way."""
        state = self.state
        if state.saved_step != state.step:
            before, state.saved_step = state.saved_step, state.step
            driver = {"driver": asdict(state)}
            self.learner.save_checkpoint(self.job.checkpoints, state.step, driver, state.best_step)
            if before > 0:  # it is written: the learner waits for one before it begins another
                self.job.run.note_saved("rl", before)

    def finish_saving(self) -> None:
        """Waits until the checkpoint is written."""
        self.learner.finish_checkpoint()
        if self.state.saved_step > 0:
            self.job.run.note_saved("rl", self.state.saved_step)

    def rescue(self) -> None:
        """A checkpoint for what cannot go on, if the last step is logged and the learner can still write."""
        if not self.whole:
            return
        try:
            self.save()
            self.finish_saving()
        except (RunFailed, UserError, OSError, ray.exceptions.RayError) as error:
            self._note(f"no checkpoint could be written either: {one_line(error)}")

    def finish(self) -> None:
        """Writes the policy that validates best to ``models/rl``."""
        self.finish_saving()
        best = self.state.best_step
        saved = checkpoint.of_step(self.job.checkpoints, best) if best else None
        if best and saved is None:
            raise RunFailed(f"{self.job.checkpoints} holds no whole checkpoint to make models/rl from")
        if saved and checkpoint.step_of(saved) != best:
            self.job.progress.note(
                f"the checkpoint of step {best}, which validates best, is damaged or gone; models/rl is that "
                f"of step {checkpoint.step_of(saved)}"
            )
        self.learner.write_model(saved, self.job.run.models / "rl")

    def _kept(self, taken: list[Call]) -> list[Call]:
        """The groups that were not given up; those that were are recorded in ``dropped.jsonl``."""
        for call in taken:
            if call.dropped:
                group = call.request.prompts[0]
                self._note(f"group {group.group_id} is dropped: it {call.dropped}")
                row = {"step": self.state.step + 1, "group_id": group.group_id, "example": group.example.key}
                self.job.run.note_dropped(row | {"reason": call.dropped})
        groups = [call for call in taken if not call.dropped]
        if not groups:
            raise RolloutError(
                f"all {len(taken)} groups of step {self.state.step + 1} failed; {taken[0].dropped}"
            )
        return groups

    def _note(self, text: str) -> None:
        self.job.progress.note(f"step {self.state.step + 1}: {text}")
