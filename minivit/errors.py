"""The errors of the package, each with the exit code of the command line."""

from __future__ import annotations


class MinivitError(Exception):
    """Base class of all errors that minivit raises on purpose; `exit_code` is the exit code of the command line."""

    exit_code = 1


class UsageError(MinivitError):
    """An argument, option or configuration value is wrong; the message says what would work."""

    exit_code = 2


class ShapeError(MinivitError):
    """A tensor or image does not fit the model; the message has both sizes."""

    exit_code = 2


class ImageError(MinivitError):
    """An image cannot be read.

    Attributes:
        code: the reason as one stable word, as in JSONL records: "not_found", "is_a_folder", "no_permission",
            "unreadable", "empty", "not_an_image", "truncated", "damaged", "too_large", "unsupported",
            "timeout".
    """

    exit_code = 3
    UNNAMED = "the image"  # stands for the path in the message of an image without one

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        """Return how the error is pickled: with its code, as worker processes send it."""
        return type(self), (self.code, str(self))

    def named(self, name: str) -> ImageError:
        """Return the same error with `name` in place of UNNAMED; an error that has a path does not change."""
        return ImageError(self.code, str(self).replace(f"{self.UNNAMED}:", f"{name}:", 1))


class ModelUnavailableError(MinivitError):
    """The model is unavailable: not found, gated, or neither cached nor downloadable."""

    exit_code = 4


class CheckpointError(MinivitError):
    """The files exist, but minivit cannot load them as one model without guessing."""

    exit_code = 5


class TrainingError(MinivitError):
    """Training cannot go on: the loss is no finite number."""


class WriteError(MinivitError):
    """A result cannot be written: the disk is full, or the folder was removed."""
