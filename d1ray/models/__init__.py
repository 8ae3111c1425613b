"""Masked diffusion language models in plain PyTorch, and their Hugging Face folders."""

from d1ray.config.exports import on_demand

__getattr__ = on_demand(
    {
        "models.architectures": "read_config",
        "models.cache": "KVCache",
        "models.character_tokenizer": "character_tokenizer",
        "models.chat": "decode_completion encode_completion encode_prompt",
        "models.config": "DiffusionConfig",
        "models.dream": "Dream",
        "models.dream_config": "DreamConfig",
        "models.initialise": "initialise",
        "models.llada": "LLaDA",
        "models.llada_config": "LLaDAConfig",
        "models.load": "check_lora check_weights load_model",
        "models.model": "DiffusionLM",
        "models.save": "save_model",
        "models.tokenizer": "load_tokenizer",
    }
)
