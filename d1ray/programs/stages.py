"""Every stage of a recipe in turn: make the model, SFT, RL, evaluation, and what it came to."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from actors.gauges import Gauges
from actors.placement import check_resources, connected
from actors.policy import policy_of_folder
from actors.pools import Pools
from d1ray.config.errors import ConfigError, ResourceError
from d1ray.config.run import Config
from d1ray.models.architectures import read_config
from d1ray.models.character_tokenizer import character_tokenizer
from d1ray.models.load import check_lora, check_weights
from d1ray.models.make import empty_model_of, make_model
from d1ray.models.tokenizer import load_tokenizer
from d1ray.programs.doctor import as_table, examine
from d1ray.programs.evaluate import Evaluation, evaluate, held_out_prompts
from d1ray.programs.sft import train_phases
from d1ray.programs.train import reinforce
from d1ray.programs.training import job_of
from d1ray.report.report import report
from d1ray.rl.rollout import Prompt
from d1ray.run import summary
from d1ray.run.data import examples_of
from d1ray.run.folder import RunFolder
from d1ray.run.history import PHASES, History
from d1ray.run.interrupt import Interrupt
from d1ray.run.memory import PeakMemory
from d1ray.run.progress import Progress, duration
from d1ray.run.summary import Sample, StageResult
from d1ray.run.trackers import Trackers, check_trackers
from d1ray.sft.demonstrations import Demonstrations, Phase

SFT_PHASE = 1000  # keys SFT's randomness, whatever number of pre-training phases comes before it


def run_recipe(config: Config, last: Literal["sft", "rl"] = "rl") -> None:
    """Runs the recipe's stages up to ``last``; stages whose model is already in the run folder are kept.

    Raises:
        UserError: the request cannot be carried out; raised before any actor starts.
        Interrupted: a signal came; what was done is saved and the same call continues.
    """
    if last == "sft" and config.sft is None:
        raise ConfigError("the recipe has no sft section; add one, or use `d1ray train`")
    assert config.run_dir is not None
    check_model(config)
    check_trackers(config.tracking)
    tokenizer = load_tokenizer(config.model.path) if config.model.path else character_tokenizer()
    data = examples_of(config.data, config.task, config.seed, tokenizer)
    limit = config.data.max_prompt_length
    tests = held_out_prompts(tokenizer, data.examples("test", config.evaluation.examples), limit)
    validation = held_out_prompts(
        tokenizer, data.examples("validation", config.evaluation.validation_examples), limit
    )
    held_out_prompts(tokenizer, data.rows("train"), limit)  # a prompt that is too long is named now
    left_out = {"": (sum(data.dropped.values()), limit)}
    for phase in phases_of(config):
        demonstrations = Demonstrations(config, phase, tokenizer, tokenizer.eos_token_id)
        demonstrations.check()
        left_out[f" of {phase.stage}"] = demonstrations.dropped, demonstrations.limits.max_prompt_length
    reinforces = last == "rl" and config.rl is not None
    console = Console()
    for whose, (count, longest) in left_out.items():
        if count:
            console.print(
                f"{count:,} examples{whose} are left out: their prompts have more than {longest} tokens"
            )
    clock = Clock()
    with connected(config.cluster), diagnosed(config, console):
        check_resources(config, learner=reinforces)
        with (
            RunFolder.open(config.run_dir, config, console.print) as run,
            closing(Trackers(config)) as trackers,
            closing(Gauges(config.run_dir.name)) as gauges,
            PeakMemory() as memory,
            Interrupt() as interrupt,
            Progress(console) as progress,
        ):
            run.listeners += [trackers.log, gauges.log]
            with clock.time("base and SFT"):
                stages = supervised_stages(config, run, progress, interrupt)
            start = list(stages.values())[-1]
            with job_of(config, start, data, validation, run, progress, interrupt) as job:
                if reinforces:
                    with clock.time(job.rl.algorithm.title):
                        reinforce(job, gauges)
                    stages["rl"] = run.models / "rl"
                with clock.time("evaluation"):
                    evaluations = evaluate_stages(job.pools, config, stages, tests, progress, interrupt)
            results = results_of(config, evaluations)
            history = History(run.rows())
            shares = phase_shares(history)
            extra = {
                "seed": config.seed,
                "peak_memory_bytes": memory.peak_bytes,
                "seconds": clock.seconds,
                "actor_seconds_share": shares,
            }
            run.write_summary(summary.as_rows(results), extra)
            from d1ray.run.curves import draw_curves  # imports matplotlib: at a run's end, not at its start

            run.check()
            draw_curves(history, run.curves_path, results)
        console.print(summary.table(results))
        console.print(summary.samples(sample_completions(tests, evaluations)))
        print_costs(console, memory, clock.seconds, shares)
        report([run.path])
        print_places(console, run, list(stages.values())[-1])


@contextmanager
def diagnosed(config: Config, console: Console) -> Iterator[None]:
    """Shows what `d1ray doctor` finds, if the cluster has no place for the run."""
    try:
        yield
    except ResourceError:
        console.print(as_table(examine(config)))
        raise


def check_model(config: Config) -> None:
    """Reads what there is of the model before anything starts: its configuration, its weights' shapes.

    Raises:
        UserError: the model is damaged, too short for the data, or lacks a projection that gets an adapter.
    """
    if config.model.path is not None:
        check_weights(config.model.path)
        context = read_config(config.model.path).max_sequence_length
        try:
            config.check_length(context, f"the context of {config.model.path}")
        except ValueError as error:
            raise ConfigError(str(error)) from error
    model = empty_model_of(config)
    for part in (config.sft, config.rl):
        if part is not None and part.lora is not None:
            check_lora(model, part.lora)


def supervised_stages(
    config: Config, run: RunFolder, progress: Progress, interrupt: Interrupt
) -> dict[str, Path]:
    """The model folders of "base" and, where the recipe has it, "sft"; trained unless they exist already."""
    stages = {"base": config.model.path or run.models / "base"}
    start, phases = stages["base"], phases_of(config)
    if config.sft is not None:
        stages["sft"] = run.models / "sft"
        if stages["sft"].exists():
            phases = [phase for phase in phases if phase.stage != "sft"]
    if start.exists() or config.model.make is None:
        phases = [phase for phase in phases if phase.stage == "sft"]
    else:
        start = run.models / "initial"
        make_model(config.model.make, config.seed, start)
        if not config.model.make.pretraining:
            start = start.rename(stages["base"])
    if phases:
        train_phases(config, phases, start, run, progress, interrupt)
    return stages


def phases_of(config: Config) -> list[Phase]:
    """All phases of supervised training, in turn; the last of pre-training and SFT write models."""
    assert config.run_dir is not None
    models = config.run_dir / "models"
    phases = []
    if config.model.make is not None:
        phases = [Phase(f"pretrain-{n + 1}", n, c) for n, c in enumerate(config.model.make.pretraining)]
        if phases:
            phases[-1] = replace(phases[-1], save_to=models / "base")
    if config.sft is not None:
        phases.append(Phase("sft", SFT_PHASE, config.sft, save_to=models / "sft"))
    return phases


def evaluate_stages(
    pools: Pools,
    config: Config,
    stages: Mapping[str, Path],
    tests: list[Prompt],
    progress: Progress,
    interrupt: Interrupt,
) -> dict[str, Evaluation]:
    """Each stage's model on the same held-out examples."""
    evaluations = {}
    for name, folder in stages.items():
        with progress.stage(f"evaluate {name}", total=len(tests)) as stage:
            evaluations[name] = evaluate(
                pools, policy_of_folder(folder), tests, config, interrupt, on_batch=stage.update
            ).whole()
    return evaluations


def results_of(config: Config, evaluations: Mapping[str, Evaluation]) -> list[StageResult]:
    """A line of the final table a stage."""
    task, algorithm = config.task.name, config.rl.algorithm.title if config.rl else "RL"
    return [summary.summarise(name, task, e.verdicts, algorithm) for name, e in evaluations.items()]


def sample_completions(
    tests: list[Prompt], evaluations: dict[str, Evaluation], count: int = 3
) -> list[Sample]:
    """A few test examples with the completions of the first and of the last stage."""
    fields = [prompt.example.fields for prompt in tests]
    before, after = next(iter(evaluations.values())), list(evaluations.values())[-1]
    return [
        Sample(
            tests[i].example.prompt,
            str(fields[i].get("solution") or fields[i].get("expression") or ""),
            before.texts[i],
            after.texts[i],
            before.verdicts[i][0],
            after.verdicts[i][0],
        )
        for i in range(min(count, len(tests)))
    ]


def phase_shares(history: History) -> dict[str, float]:
    """Each RL phase's share of the actors' busy seconds, over all steps."""
    totals = {phase: history.phases[phase].total for phase in PHASES}
    whole = sum(totals.values())
    return {phase: seconds / whole for phase, seconds in totals.items()} if whole else {}


def print_costs(
    console: Console, memory: PeakMemory, seconds: dict[str, float], shares: dict[str, float]
) -> None:
    """Peak memory, wall time by part, and where the actors' time of RL went."""
    console.print(f"Peak memory: {memory.peak_bytes / 2**30:.2f} GiB in {memory.peak_processes} processes")
    console.print("Wall time: " + ", ".join(f"{part} {duration(s)}" for part, s in seconds.items()))
    if shares:
        console.print("Actor time: " + ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items()))


def print_places(console: Console, run: RunFolder, model: Path) -> None:
    """Where the run folder, the model, the checkpoints and the curves are."""
    places = {
        "Run folder": run.path,
        "Model": model,
        "Checkpoints": run.checkpoints,
        "Curves": run.curves_path,
        "Report": run.path / "report.html",
    }
    for name, path in places.items():
        console.print(f"{name + ':':<12} {path}", soft_wrap=True)


class Clock:
    """Wall seconds by part of the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[part] = time.monotonic() - started
