"""The model of a recipe: made from scratch, or its shapes alone."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from d1ray.config.model import ArchitectureConfig
from d1ray.config.run import Config
from d1ray.models.character_tokenizer import character_tokenizer
from d1ray.models.empty import empty_weights
from d1ray.models.initialise import initialise
from d1ray.models.llada import LLaDA
from d1ray.models.llada_config import LLaDAConfig
from d1ray.models.load import empty_model
from d1ray.models.model import DiffusionLM
from d1ray.models.save import save_model


def empty_model_of(config: Config) -> DiffusionLM:
    """The recipe's model on the meta device; of a folder or hub model only ``config.json`` is read.

    Raises:
        ModelError: it cannot be read.
    """
    if config.model.path is not None:
        return empty_model(config.model.path)
    assert config.model.make is not None
    with empty_weights():
        return LLaDA(llada_config(config.model.make, character_tokenizer()))


def make_model(architecture: ArchitectureConfig, seed: int, folder: Path) -> None:
    """Writes a freshly initialised LLaDA with the character tokenizer to ``folder``."""
    tokenizer = character_tokenizer()
    save_model(initialise(LLaDA(llada_config(architecture, tokenizer)), seed), folder, tokenizer)


def llada_config(architecture: ArchitectureConfig, tokenizer: PreTrainedTokenizerBase) -> LLaDAConfig:
    """The configuration of a LLaDA that speaks the tokenizer's ids."""
    return LLaDAConfig(
        **architecture.model_dump(exclude={"pretraining"}),
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
