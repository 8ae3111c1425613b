"""The examples of a run, as its settings say."""

from functools import partial

from transformers import PreTrainedTokenizerBase

from d1ray.config.data import DataConfig
from d1ray.models.chat import prompt_fits
from d1ray.tasks.source import Data, open_data
from d1ray.tasks.task import Example, Task


def examples_of(settings: DataConfig, task: Task, seed: int, tokenizer: PreTrainedTokenizerBase) -> Data:
    """The examples of ``task``. Raises ``DataError`` (``d1ray.tasks.source.open_data``)."""
    keeps = partial(stays, settings, tokenizer)
    return open_data(task, settings.path, seed, subset=settings.subset, columns=settings.columns, keeps=keeps)


def stays(settings: DataConfig, tokenizer: PreTrainedTokenizerBase, example: Example) -> bool:
    """Whether ``data.overlong_prompts`` leaves the example in."""
    return settings.overlong_prompts == "error" or prompt_fits(
        tokenizer, example.prompt, settings.max_prompt_length, example.prefill
    )
