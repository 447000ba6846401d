"""How the stand-ins refuse what they cannot do."""

from __future__ import annotations

from thawkit.errors import ThawkitError


def only(default: object, **argument: object) -> None:
    """Require an argument at its default.

    Raises:
        ThawkitError: it has another value; the message names it and says what came.
    """
    ((name, value),) = argument.items()
    if value is not default and value != default:
        raise ThawkitError(f"{name} is supported at {default!r} only, got {value!r}")
