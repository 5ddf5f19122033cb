"""Every refusal of the package, with the exit code the command line gives it."""


class MinivitError(Exception):
    """Base of all errors minivit raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(MinivitError):
    """The call itself is wrong: an argument that cannot be honoured, with what would work."""

    exit_code = 2


class ShapeError(MinivitError):
    """A tensor does not fit the model; the message carries both sizes."""

    exit_code = 2


class ImageError(MinivitError):
    """An image that cannot be read; `code` is the short stable word that stands in JSONL records."""

    exit_code = 3

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class ModelUnavailableError(MinivitError):
    """The model is not to be had: offline and not cached, not found, gated, or an unknown path."""

    exit_code = 4


class CheckpointError(MinivitError):
    """The files are there and are not a checkpoint minivit can load without guessing."""

    exit_code = 5


class WriteError(MinivitError):
    """What was asked for cannot be written any further: a full disk, a folder that is gone."""
