"""`d1ray sft`: masked-diffusion training on demonstrations with Ray Train's TorchTrainer.

Pre-training phases and SFT are the same loop (``actors.sft_worker``); the phases of one call run in one
gang of workers. This is the driver's side: start, follow, pass on an interrupt.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.bulletin import Bulletin
from actors.sft_worker import train_worker
from d1ray.config.errors import RunFailed, UserError
from d1ray.config.run import Config
from d1ray.programs.recovery import refuse_to_begin_again
from d1ray.run import checkpoint
from d1ray.run.folder import RunFolder
from d1ray.run.interrupt import Interrupted
from d1ray.run.progress import Progress, Stage
from d1ray.sft.demonstrations import Phase
from d1ray.sft.model import resumable

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

POLL_S = "0.2"  # of Ray Train's workers; its own 2 s are lost at the end of every gang
WORKER_DEATHS = 3  # after so many the run ends; its checkpoints are kept
NEEDLESS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
HANGS = 3  # deadlines: one to notice a worker that hangs, two to start all of them again


def train_phases(
    config: Config,
    phases: Sequence[Phase],
    start: Path,
    run: RunFolder,
    progress: Progress,
    interrupt: Callable[[], bool],
) -> None:
    """Trains ``phases`` in turn from the model folder ``start``.

    When a worker dies, or does not answer for ``cluster.deadline_s``, all start again from the newest
    checkpoint.

    Raises:
        RunFailed: nothing happens for longer than that takes.
        Interrupted: a signal came; a checkpoint was written and the same call continues from it.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from actors.sft_group import MeetingTorchConfig

    c = config.cluster
    root = config.checkpoint_root("sft")
    resume = resumable(root, phases)
    if resume is None:
        for phase in phases:
            refuse_to_begin_again(run, phase.stage, root)
    position = checkpoint.load_state(resume) if resume else {"phase": phases[0].number, "step": 0}
    for phase in phases:
        if phase.number >= position["phase"]:
            run.truncate_metrics(phase.stage, position["step"] if phase.number == position["phase"] else 0)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(c.deadline_s)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_S)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    bulletin = ray.remote(num_cpus=0, scheduling_strategy=here)(Bulletin).remote()  # lost with us alone
    resources = {"CPU": c.sft_worker_cpus} | ({"GPU": c.sft_worker_gpus} if c.sft_worker_gpus else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config,
            "phases": list(phases),
            "start": start,
            "checkpoints": root,
            "bulletin": bulletin,
            "claims": run.claims,
        },
        torch_config=MeetingTorchConfig(
            backend="cpu:gloo,cuda:nccl" if c.sft_worker_gpus else "gloo", timeout_s=int(c.deadline_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=c.sft_workers, use_gpu=c.sft_worker_gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="sft",
            storage_path=str(run.path / "ray_train"),
            failure_config=FailureConfig(max_failures=WORKER_DEATHS),
        ),
    )
    leave_out_helpers(trainer)
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    fitting = threading.Thread(target=fit, daemon=True)  # outside the main thread fit() leaves SIGINT to us
    fitting.start()
    follow(phases, bulletin, fitting, run, progress, interrupt, c.deadline_s)
    ray.kill(bulletin)
    for failure in failures:
        raise cause_of(failure)
    if interrupt():
        if saved := resumable(root, phases):
            state = checkpoint.load_state(saved)
            run.note_saved(next(p.stage for p in phases if p.number == state["phase"]), state["step"])
        raise Interrupted
    run.check()
    for phase in phases:
        run.note_saved(phase.stage, 0)
    checkpoint.remove(root)  # the models are saved; a later phase must not resume from here


def leave_out_helpers(trainer: "TorchTrainer") -> None:
    """Leaves out actors that Ray Train starts beside its workers, each an import of torch and Ray Data: for
    data sets, which are not its, and against placement groups that outlive a driver, which these do not. A
    Ray without the method starts what it likes."""
    if chosen := getattr(trainer, "_create_default_callbacks", None):
        name = chosen.__name__
        setattr(trainer, name, lambda: [c for c in chosen() if type(c).__name__ not in NEEDLESS])


def cause_of(failure: BaseException) -> BaseException:
    """The error a person can act on that made the workers fail, if there is one; else ``failure``."""
    workers = getattr(failure, "worker_failures", {})
    return next((error for error in workers.values() if isinstance(error, UserError)), failure)


def follow(
    phases: Sequence[Phase],
    bulletin: ActorHandle,
    fitting: threading.Thread,
    run: RunFolder,
    progress: Progress,
    interrupt: Callable[[], bool],
    deadline_s: float,
) -> None:
    """Shows and logs the workers' rows until ``fitting`` ends; passes an interrupt on to them.

    Raises:
        RunFailed: no row came for ``HANGS`` times ``deadline_s``.
    """
    by_number = {phase.number: phase for phase in phases}
    shown = step = -1

    def position() -> str:
        return f"{by_number[shown].stage}, after step {step}" if shown in by_number else phases[0].stage

    last_row = time.monotonic()
    with ExitStack() as stack:
        stage: Stage | None = None
        while True:
            running = fitting.is_alive()
            try:
                rows = ray.get(bulletin.read.remote(), timeout=deadline_s)
            except ray.exceptions.RayError as error:
                raise RunFailed(
                    f"{position()}: the Bulletin, an actor through which the workers report, has died or did "
                    f"not answer for {deadline_s:g} s (cluster.deadline_s): {type(error).__name__}"
                ) from error
            for row in rows:
                last_row = time.monotonic()
                phase = by_number[row.pop("phase")]
                if phase.number != shown or row["step"] <= step:  # the workers have started again
                    run.truncate_metrics(phase.stage, row["step"] - 1)
                    stack.close()
                    shown = phase.number
                    stage = stack.enter_context(
                        progress.stage(phase.stage, phase.config.steps, row["step"] - 1)
                    )
                step, every = row["step"], phase.config.checkpoint_every
                if every and step > every and step % every == 1 % every:
                    run.note_saved(phase.stage, step - 1)  # it is written before the next step begins
                run.log(row)
                assert stage is not None
                stage.update(row["step"], row)
            if not running:
                return
            if interrupt():
                bulletin.stop.remote()
            if time.monotonic() - last_row > HANGS * deadline_s:
                raise RunFailed(
                    f"{position()}: no step by Ray Train's workers for {HANGS * deadline_s:g} s "
                    f"({HANGS} times cluster.deadline_s); they wait for resources, or hang"
                )
            fitting.join(0.3)
