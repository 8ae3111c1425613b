"""Errors a user can act on. Each message says what was asked, what was found and what to do."""


class UserError(Exception):
    """The request cannot be carried out as written; the command line prints the message and exits with 2."""


class ConfigError(UserError):
    """A recipe or override is wrong: unknown key, wrong type, impossible combination."""


class DataError(UserError):
    """A data file is missing or holds a malformed row; the message names the file and the row."""


class ModelError(UserError):
    """A model folder is missing, incomplete, or of an architecture that is not supported."""


class ResourceError(UserError):
    """The cluster cannot hold the actors the recipe asks for."""


class RunFailed(RuntimeError):
    """The run cannot go on, though nothing is wrong with the request; the command line exits with 1.

    What was saved is kept, and the same command goes on from it.
    """
