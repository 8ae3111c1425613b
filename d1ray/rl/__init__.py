"""Reinforcement learning on masked diffusion models: advantages, losses and updates."""
