"""Evaluation: what is completed and how, the kept samples, the table; the harness; scores of files."""
