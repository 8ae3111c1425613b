"""Bulletin: how Ray Train's workers tell the driver how far they are, and learn that they should stop."""

from typing import Any


class Bulletin:
    """Rows posted by rank 0, read by the driver; a stop wish set by the driver, read by rank 0.

    It outlives the workers, which Ray Train starts anew when one dies.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.stop_wished = False

    def post(self, row: dict[str, Any]) -> bool:
        """Adds a row. Returns whether the run should checkpoint and stop."""
        self.rows.append(row)
        return self.stop_wished

    def read(self) -> list[dict[str, Any]]:
        """The rows posted since the last call."""
        rows, self.rows = self.rows, []
        return rows

    def stop(self) -> None:
        """Asks the run to checkpoint and stop."""
        self.stop_wished = True
