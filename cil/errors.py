"""Mistakes of the user, told in the user's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend: command lines print its message alone and exit with status 2."""


def nearest(wrong: str, legal: Iterable[str]) -> str:
    """``did you mean 'x'? `` if one of the legal names is close to the wrong one, else nothing."""
    by_lower = {name.lower(): name for name in legal}
    close = difflib.get_close_matches(wrong.lower(), list(by_lower), n=1, cutoff=0.5)
    return f"did you mean '{by_lower[close[0]]}'? " if close else ""


def unknown(kind: str, wrong: str, legal: Iterable[str]) -> UserError:
    """The error for a name that is not one of the legal ones: names it, the nearest match and all legal names."""
    names = sorted(legal)
    return UserError(f"{kind}: no '{wrong}'; {nearest(wrong, names)}Legal: {', '.join(names)}.")
