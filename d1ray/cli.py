"""The command line:
``d1ray train | sft | evaluate | score | harness | serve | report | export | doctor | recipes``.

A command imports what it runs: help, and what is wrong with a request, come before torch is loaded.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from d1ray.config.errors import ConfigError, RunFailed, UserError
from d1ray.run.interrupt import Interrupted

if TYPE_CHECKING:
    from d1ray.config.run import Config

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Reinforcement learning for masked diffusion language models, on Ray.",
)


def _recipes() -> list[str]:
    from d1ray.config.recipe import recipe_names

    return recipe_names()


Recipe = Annotated[
    str,
    typer.Argument(help="a recipe's name (see `d1ray recipes`) or a YAML file", autocompletion=_recipes),
]
ExportForm = Literal["merged", "peft"]
Precision = Literal["fp32", "bf16", "fp16"]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="settings as key=value, e.g. rl.steps=10 run_dir=DIR")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from d1ray import __version__

        print(f"d1ray {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print it and exit")
    ] = False,
) -> None:
    """What comes before a command."""


@app.command()
def train(recipe: Recipe, overrides: Overrides = None) -> None:
    """Run every stage the recipe names: make the model, SFT, RL, evaluation."""
    _run(_config(recipe, overrides), "rl")


@app.command()
def sft(recipe: Recipe, overrides: Overrides = None) -> None:
    """Run the recipe up to SFT, and evaluate."""
    _run(_config(recipe, overrides), "sft")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="a model folder, checkpoint, run folder or hub id")],
    task: Annotated[list[str], typer.Option(help="a task, e.g. sudoku; may be given several times")],
    length: Annotated[
        list[int] | None, typer.Option(min=2, help="generation length, with length/2 steps; several times")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="file, folder or hub id; default: the task's test split")
    ] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="how many examples at most")] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="completions an example, for pass@k and majority vote")
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option(help="keep completions, results.json and table.md here, and go on from here"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    overrides: Overrides = None,
) -> None:
    """Complete and score held-out examples with a trained model."""
    from d1ray.evaluation.config import evaluation_configs

    folder, configs = evaluation_configs(model, task, overrides or [], own_data=data is not None)
    prepare_local_ray(configs[0])
    from d1ray.programs.evaluate_model import Asked, evaluate_tasks

    asked = Asked(data, examples, length or [], output and output.absolute(), samples)
    evaluate_tasks(configs, folder, asked, as_json)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="JSONL or Parquet: `completion` and the task's fields")],
    task: Annotated[str, typer.Option(help="the task, e.g. gsm8k, reasoning_gym:chain_sum or my_task.py")],
    output: Annotated[Path | None, typer.Option(help="write a JSON object a completion here")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="default: one a CPU")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="task.KEY=VALUE or scoring.KEY=VALUE, e.g. scoring.timeout_s=1")
    ] = None,
) -> None:
    """Score completions that exist already."""
    from d1ray.evaluation.config import score_config

    config = score_config(task, overrides or [])
    from d1ray.evaluation import score as program

    summary = program.score_file(config.task, file, output, config.scoring, processes)
    print(program.as_json(summary) if as_json else program.report(summary))


@app.command()
def harness(
    model: Annotated[Path, typer.Argument(help="a model folder, checkpoint, run folder or hub id")],
    tasks: Annotated[str, typer.Option(help="the harness's tasks, e.g. gsm8k,hellaswag")],
    fewshot: Annotated[
        int | None, typer.Option(min=0, help="examples in the prompt; default: the task's")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="examples of each task at most")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="prompts as user turns of the chat template")] = False,
    length: Annotated[int | None, typer.Option(min=2, help="generation length, with length/2 steps")] = None,
    likelihood_samples: Annotated[int, typer.Option(min=1, help="forward passes for each likelihood")] = 128,
    include_path: Annotated[Path | None, typer.Option(help="a folder of more task files")] = None,
    output: Annotated[Path | None, typer.Option(help="write the harness's results here, as JSON")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="evaluation.KEY=VALUE or seed=N, e.g. evaluation.batch_size=16")
    ] = None,
) -> None:
    """Run lm-evaluation-harness's tasks (extra `harness`)."""
    from d1ray.evaluation.config import harness_config, model_folder, with_length

    folder, config = model_folder(model), harness_config(overrides or [])
    if length is not None:
        config = with_length(config, length)
    try:
        from d1ray.evaluation.harness import HarnessModel, run_tasks
    except ImportError as error:
        raise ConfigError(f"lm-eval is not installed ({error}); pip install 'd1ray[harness]'") from error
    asked = [task.strip() for task in tasks.split(",") if task.strip()]
    served = partial(HarnessModel, folder, config.evaluation, config.seed, likelihood_samples)
    run_tasks(served, asked, include_path, fewshot, limit, chat, output)


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="a model folder, checkpoint, run folder or hub id")],
    port: Annotated[int | None, typer.Option(help="8000 by default")] = None,
    host: Annotated[str | None, typer.Option(help="127.0.0.1 by default; others need keys")] = None,
    replicas: Annotated[str | None, typer.Option(metavar="MIN:MAX", help="copies of the model")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="keys of the API, a line each")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="serve a run's newest checkpoint, always")] = False,
    local: Annotated[bool, typer.Option("--local", help="in this process alone, without Ray")] = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings as key=value, e.g. limits.max_tokens=512")
    ] = None,
) -> None:
    """Serve a model by OpenAI's API, with a page to watch it denoise."""
    from d1ray.evaluation.config import model_folder
    from d1ray.serving.config import read_keys, serve_config

    config = serve_config(
        model,
        overrides or [],
        port=port,
        host=host,
        replicas=replicas,
        api_key_file=api_key_file,
        follow=follow or None,
    )
    model_folder(config.model), read_keys(config.api_key_file)  # what is wrong with them is said at once
    if local:
        from d1ray.serving.local import run as serve_here

        serve_here(config)
        return
    if "RAY_ADDRESS" not in os.environ:  # before Ray is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from d1ray.programs.serve import run

    run(config)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders; several are compared")],
    output: Annotated[
        Path | None,
        typer.Option(help="default: report.html in the run folder; of several runs ./comparison.html"),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="write what each actor did when here instead, for Perfetto")
    ] = None,
) -> None:
    """Write a page about runs: curves, completions, failures, settings; or a trace of one."""
    from d1ray.report import report as program

    if trace is not None:
        print(program.trace(runs, trace))
    if trace is None or output is not None:
        print(program.report(runs, output))


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="a checkpoint, run folder, model folder, PEFT folder or hub id")
    ],
    folder: Annotated[Path, typer.Argument(help="where to write; a new folder")],
    form: Annotated[
        ExportForm, typer.Option("--format", help="a whole model, or the adapter alone")
    ] = "merged",
    dtype: Annotated[Precision | None, typer.Option(help="of merged weights; default: as stored")] = None,
    base: Annotated[str | None, typer.Option(help="the model a PEFT adapter names, e.g. a hub id")] = None,
) -> None:
    """Write a model as a Hugging Face folder."""
    from d1ray.programs.export import export as write

    print(f"{write(checkpoint, folder, form, dtype, base)} -> {folder} ({form})")


@app.command()
def doctor(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check whether the cluster can run a recipe, and estimate what it takes."""
    config = _config(recipe, overrides)
    from rich.console import Console

    from d1ray.programs.doctor import as_table, examine

    findings = examine(config)
    Console().print(as_table(findings))
    if any(finding.outcome == "failed" for finding in findings):
        raise typer.Exit(2)


@app.command()
def recipes() -> None:
    """List the recipes, one line each."""
    from d1ray.config.recipe import read_recipe, recipe_names

    names = recipe_names()
    for name in names:
        print(f"{name:<{max(map(len, names))}}  {read_recipe(name).get('about', '')}")


def _config(recipe: str, overrides: list[str] | None) -> "Config":
    from d1ray.config.recipe import load_config

    config = load_config(recipe, overrides or [])
    prepare_local_ray(config)
    return config


def _run(config: "Config", last: Literal["sft", "rl"]) -> None:
    from d1ray.run.lease import places_of, refuse_if_held

    for place in places_of(config):
        refuse_if_held(place)
    from d1ray.programs.stages import run_recipe

    run_recipe(config, last)


def prepare_local_ray(config: "Config") -> None:
    """Protects a cluster that will be started here by a token and keeps it quiet.

    Ray reads these variables when it is imported, so this comes before any import of it.
    """
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # results of lost calls that were made again
    if config.cluster.address is None and "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def main() -> None:
    """Entry point. Exit status: 0 done, 2 the request is wrong, 130 interrupted, 143 terminated, 1 other."""
    try:
        app()
    except UserError as error:
        reason = getattr(error, "cause", error)  # Ray wraps a worker's error in its traceback
        print(f"d1ray: error: {reason}", file=sys.stderr)
        sys.exit(2)
    except RunFailed as error:
        reason = getattr(error, "cause", error)
        print(
            f"d1ray: error: {reason}. What is saved is kept; the same command goes on from it.",
            file=sys.stderr,
        )
        sys.exit(1)
    except Interrupted as error:
        how = str(error) or "everything so far is saved"
        print(f"d1ray: interrupted; {how}. Run the same command to continue.", file=sys.stderr)
        sys.exit(error.status)
