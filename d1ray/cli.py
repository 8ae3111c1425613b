"""The command line:
``d1ray train | sft | evaluate | score | harness | serve | report | export | doctor | recipes``."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from d1ray.config.errors import ConfigError, RunFailed, UserError
from d1ray.config.recipe import load_config, recipe_names
from d1ray.config.run import Config
from d1ray.evaluation.config import evaluation_config, harness_config, model_folder, score_config, with_length
from d1ray.programs.serve_command import serve
from d1ray.run.interrupt import Interrupted

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Recipe = Annotated[str, typer.Argument(help="a recipe's name (see `d1ray recipes`) or a YAML file")]
ExportForm = Literal["merged", "peft"]
Precision = Literal["fp32", "bf16", "fp16"]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="settings as key=value, e.g. rl.steps=10 run_dir=DIR")
]


@app.command()
def train(recipe: Recipe, overrides: Overrides = None) -> None:
    """Run every stage the recipe names: make the model, SFT, RL, evaluation."""
    config = load_config(recipe, overrides or [])
    prepare_local_ray(config)
    from d1ray.programs.stages import run_recipe

    run_recipe(config)


@app.command()
def sft(recipe: Recipe, overrides: Overrides = None) -> None:
    """Run the recipe up to SFT, and evaluate."""
    config = load_config(recipe, overrides or [])
    prepare_local_ray(config)
    from d1ray.programs.stages import run_recipe

    run_recipe(config, last="sft")


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
    folder = model_folder(model)
    own_data = data is not None
    configs = [evaluation_config(model.absolute(), folder, name, overrides or [], own_data) for name in task]
    if data is not None and len(task) > 1:
        raise ConfigError("--data is one task's; evaluate the tasks one by one into the same --output")
    prepare_local_ray(configs[0])
    from d1ray.evaluation import table as evaluation_table
    from d1ray.programs.evaluate_model import evaluate_model
    from d1ray.run import summary

    results, cells = [], []
    for config in configs:
        done = evaluate_model(
            config, folder, data, examples, length or [], output and output.absolute(), samples
        )
        results += done[0]
        cells += done[1]
    if output is not None:
        (output / "results.json").write_text(json.dumps(evaluation_table.as_rows(cells), indent=2) + "\n")
        (output / "table.md").write_text(evaluation_table.markdown(cells))
    if as_json:
        rows = evaluation_table.as_rows(cells) if output or samples > 1 else summary.as_rows(results)
        print(json.dumps(rows[0] if len(rows) == 1 else rows))
    elif output is not None or samples > 1:
        print(evaluation_table.markdown(cells), end="")
    else:
        Console().print(*(summary.table([result]) for result in results))


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
    from d1ray.evaluation import score as program

    config = score_config(task, overrides or [])
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
    folder, config = model_folder(model), harness_config(overrides or [])
    if length is not None:
        config = with_length(config, length)
    try:
        import lm_eval.utils

        from d1ray.evaluation import harness as program
    except ImportError as error:
        raise ConfigError(f"lm-eval is not installed ({error}); pip install 'd1ray[harness]'") from error
    asked = [task.strip() for task in tasks.split(",") if task.strip()]
    manager = program.tasks_of(asked, include_path)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    served = program.HarnessModel(folder, config.evaluation, config.seed, likelihood_samples)
    results = program.run_harness(served, asked, manager, fewshot, limit, chat)
    print(lm_eval.utils.make_table(results))
    if output is not None:
        results.pop("samples", None)
        output.write_text(json.dumps(results, indent=2, default=str) + "\n")


app.command()(serve)


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
    config = load_config(recipe, overrides or [])
    prepare_local_ray(config)
    from d1ray.programs.doctor import as_table, examine

    findings = examine(config)
    Console().print(as_table(findings))
    if any(finding.outcome == "failed" for finding in findings):
        raise typer.Exit(2)


@app.command()
def recipes() -> None:
    """List the recipes, one line each."""
    names = recipe_names()
    for name in names:
        print(f"{name:<{max(map(len, names))}}  {load_config(name).about}")


def prepare_local_ray(config: Config) -> None:
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
