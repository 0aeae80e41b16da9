"""Errors and warnings of the package; each error is also the builtin error that it refines."""


class SlamsError(Exception):
    """Base of all errors that the package raises on purpose."""


class InvalidValueError(SlamsError, ValueError):
    """A value of the right type that a method, file or setting does not allow."""


class InvalidTypeError(SlamsError, TypeError):
    """An object of another type than expected."""


class MissingFileError(SlamsError, FileNotFoundError):
    """A file that is not there."""


class NonFiniteError(SlamsError, FloatingPointError):
    """Numbers that are not finite: a model, filter or sampler that diverged."""


class UntrustedCodeError(SlamsError, PermissionError):
    """Code of another package that was not named as trusted."""


class SlamsWarning(UserWarning):
    """Base of all warnings of the package."""


class DivergenceWarning(SlamsWarning):
    """A filter lost the truth, or its ensemble degenerated; results after that step are not trustworthy."""


class DataWarning(SlamsWarning):
    """Values that were left out, converted or filled on reading."""
