"""Masked diffusion language models in plain PyTorch, and their Hugging Face folders."""

from d1ray.models.chat import decode_completion, encode_completion, encode_prompt
from d1ray.models.folder import check_weights, load_model, read_config, save_model
from d1ray.models.llada import LLaDA, LLaDAConfig, initialise
from d1ray.models.tokenizer import character_tokenizer, load_tokenizer

__all__ = [
    "LLaDA",
    "LLaDAConfig",
    "character_tokenizer",
    "check_weights",
    "decode_completion",
    "encode_completion",
    "encode_prompt",
    "initialise",
    "load_model",
    "load_tokenizer",
    "read_config",
    "save_model",
]
