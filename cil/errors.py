"""Mistakes of the user, told in the user's words."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any

LARGEST = 4096  # pixels on a side: a batch of larger images would not fit into memory


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


def check_number(
    key: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Refuse an option that is no finite number in its range: at least, above, at most and below these.

    Args:
        key: of the option, as a configuration names it: ``strategy.temperature``.
        value: as it was given.
        least: the smallest legal value.
        above: legal values are larger.
        most: the largest legal value.
        below: legal values are smaller.
        whole: only whole numbers are legal.

    Raises:
        UserError: names the option, its value and what is legal.
    """
    signs = (">=", operator.ge, least), (">", operator.gt, above), ("<=", operator.le, most), ("<", operator.lt, below)
    given = [(sign, holds, bound) for sign, holds, bound in signs if bound is not None]
    fine = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not (fine and -math.inf < value < math.inf and all(holds(value, bound) for _, holds, bound in given)):
        legal = " and ".join(f"{sign} {bound:g}" for sign, _, bound in given)
        raise UserError(f"{key}: {value!r} must be a {'whole' if whole else 'finite'} number {legal}".rstrip())


def check_side(key: str, value: Any) -> None:
    """Refuse what is no side of an image in pixels; one beyond ``LARGEST`` is a slip of the pen.

    Raises:
        UserError: names the option, its value and what is legal.
    """
    check_number(key, value, least=1, most=LARGEST, whole=True)


def shortened(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
