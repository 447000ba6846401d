"""The errors and warnings that thawkit raises on purpose.

A :class:`ThawkitError` is always the caller's to mend (a wrong argument, a missing or damaged file), so
the command line prints its message as one line and exits with status 2, without a traceback.
"""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class ThawkitError(ValueError):
    """Bad input. The message names the argument, what was expected and what came."""


class MissingDependencyError(ThawkitError, ImportError):
    """An optional package is needed for this call. The message names the extra that brings it."""


class ThawkitWarning(UserWarning):
    """Something that works but probably not as intended."""
