"""Errors that are written for the person who reads them: what was wrong, where, what to do."""

from __future__ import annotations


class FxQuantError(Exception):
    """Base of every error that a user can cause.

    `message` says what was wrong, where (file, module, node) and what was expected; `hint`,
    where there is one, says what to do next. `exit_code` is what the command line ends with.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class SettingError(FxQuantError):
    """A setting is outside its range, contradicts another one, or is unknown."""


class ModelLoadError(FxQuantError):
    """A model, its file or its architecture can't be loaded."""


class UntrustedClassError(ModelLoadError):
    """A pickled model names a class that may not be loaded without the user's word."""


class TraceError(FxQuantError):
    """torch.fx can't turn the model into a graph that computes the same."""


class DataError(FxQuantError):
    """Evaluation data is missing, malformed, or doesn't fit the model."""


class DivergenceError(FxQuantError):
    """Training produced a value that is not finite, or a student worse than none."""

    exit_code = 5


class ResourceError(FxQuantError):
    """The machine has not enough memory for what was asked."""


class OutputError(FxQuantError):
    """The output folder can't be written, or holds something else."""


class ExportError(FxQuantError):
    """The student can't be written as ONNX."""


class ParityError(FxQuantError):
    """The exported file doesn't compute what the student computes."""

    exit_code = 4
