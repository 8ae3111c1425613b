"""Tasks: they turn rows or random draws into examples, and completions into scores.

The tasks that a recipe can name stand in ``d1ray.config.kinds``.
"""

from d1ray.config.exports import on_demand

__getattr__ = on_demand(
    {
        "config.kinds": "TASKS load_task",
        "tasks.task": "Example Score Split Task",
        "tasks.countdown": "Countdown",
        "tasks.dialogue": "Dialogue",
        "tasks.gsm8k": "GSM8K",
        "tasks.gym": "ReasoningGym",
        "tasks.math": "Math",
        "tasks.s1k": "S1K",
        "tasks.sudoku": "Sudoku",
        "tasks.sudoku9": "Sudoku9",
    }
)
