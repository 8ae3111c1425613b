"""Supervised masked-diffusion training: demonstrations, the step, the model it starts from."""
