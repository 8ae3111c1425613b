"""`d1ray evaluate`: any model folder, checkpoint or run folder on a task's held-out examples."""

from contextlib import closing
from pathlib import Path

from actors.placement import check_resources, connected
from actors.policy import policy_of_folder
from actors.pools import Pools
from d1ray import summary
from d1ray.config import Config
from d1ray.errors import DataError
from d1ray.evaluate import evaluate, held_out_prompts
from d1ray.models import check_weights, load_tokenizer
from d1ray.tasks.rows import load_examples
from d1ray.tasks.source import open_data


def evaluate_model(config: Config, folder: Path, data: Path | None, count: int | None) -> summary.StageResult:
    """Evaluates the model in ``folder`` on the test split, or on every row of the file ``data``.

    Args:
        count: how many examples at most.

    Raises:
        UserError: the model or the data cannot be read; raised before any actor starts.
    """
    check_weights(folder)
    if data is None:
        examples = open_data(config.task, config.data.path, config.seed).examples(
            "test", count or config.evaluation.examples
        )
    else:
        examples = load_examples(config.task, data)[:count]
        if not examples:
            raise DataError(f"{data} holds no rows")
    prompts = held_out_prompts(load_tokenizer(folder), examples, config.data.max_prompt_length)
    with connected(config.cluster):
        check_resources(config, learner=False)
        with closing(Pools(config, folder)) as pools:
            verdicts = evaluate(pools, policy_of_folder(folder), prompts, config).verdicts
    return summary.summarise(folder.name, config.task.name, verdicts)
