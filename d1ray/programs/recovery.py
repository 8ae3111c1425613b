"""How often a lost learner is built again, and that a run whose checkpoints are gone does not begin anew."""

from actors.failures import LearnerLost
from d1ray.config.errors import DataError
from d1ray.run.checkpoint import Place
from d1ray.run.folder import RunFolder


class RestartLadder:
    """Counts the rebuilds of a learner; too many that got nowhere end the run.

    Args:
        most: rebuilds without getting past the step of the one before (``cluster.learner_restarts``).

    Attributes:
        rebuilds: in all.
        incarnation: of the learner that is built next, or was built last; rises with each, so that rollouts
            of a future that was rolled back are told apart.
    """

    def __init__(self, most: int):
        self.most = most
        self.rebuilds = self.incarnation = 0
        self._in_vain = self._from_step = 0

    def begins(self, step: int, incarnation: int) -> int:
        """A learner goes on from ``step``, whose checkpoint is of ``incarnation``; gives its own."""
        self._from_step = step
        self.incarnation = max(self.incarnation, incarnation) + 1
        return self.incarnation

    def fell(self, error: LearnerLost, newest: int) -> None:
        """The learner was lost, and the newest checkpoint is of step ``newest``. Raises ``error`` if it was
        one time too many."""
        self._in_vain = 1 if newest > self._from_step else self._in_vain + 1
        self.rebuilds += 1
        if self._in_vain > self.most:
            raise error


def refuse_to_begin_again(run: RunFolder, stage: str, checkpoints: Place) -> None:
    """Raises ``DataError`` if checkpoints of ``stage`` were written; call it where none is to be found."""
    if saved := run.saved_step(stage):
        raise DataError(
            f"{run.path} has saved a checkpoint of step {saved} ({stage}), but {checkpoints} holds none that "
            f"is whole: mount it, or correct checkpoint_path; or remove {run.saved_path} to begin again"
        )
