"""A run: its folder, checkpoints, metrics, display, and how it ends."""
