"""The data: the task's generator, files, or the hub."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from d1ray.config.settings import LocalOrHub, PositiveInt, Strict


class DataConfig(Strict):
    """Where examples come from: the task's generator, files, or the Hugging Face hub."""

    path: LocalOrHub | None = Field(
        None,
        description="file, folder with train.* and test.*, or hub id; null: generated, or the task's own on "
        "the hub",
    )
    subset: str | None = Field(None, description="configuration of a hub data set, e.g. main")
    columns: Mapping[str, str] = Field({}, description="the data's name of a column the task reads")
    overlong_prompts: Literal["error", "drop"] = Field("error", description="rows with too long a prompt")
    max_prompt_length: PositiveInt = Field(200, description="tokens, chat template included")
    max_completion_length: PositiveInt = Field(256, description="tokens; SFT pads completions to it with EOS")
