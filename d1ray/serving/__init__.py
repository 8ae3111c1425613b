"""Serving a trained model: continuous batching of denoising rows behind an OpenAI-compatible API."""
