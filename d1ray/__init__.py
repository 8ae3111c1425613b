"""d1ray: reinforcement learning of masked diffusion language models on Ray."""

__version__ = "0.1.0"
