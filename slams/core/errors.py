"""Errors and warnings of the package; each error is also the builtin error that it refines."""


class SlamsError(Exception):
    """Base of all errors raised by the package."""


class InvalidValueError(SlamsError, ValueError):
    """A value of the right type that a method, file or setting does not allow."""


class InvalidTypeError(SlamsError, TypeError):
    """An object of another type than expected."""


class MissingFileError(SlamsError, FileNotFoundError):
    """A file that is not there."""


class SlamsWarning(UserWarning):
    """Base of all warnings of the package."""


class DivergenceWarning(SlamsWarning):
    """A filter diverged or its ensemble degenerated; results after that step are unreliable."""


class DataWarning(SlamsWarning):
    """Values were dropped, converted or filled on reading."""
