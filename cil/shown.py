"""Text that others wrote, shown as it is: on a terminal it commands nothing, in a spreadsheet it computes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Control characters but tab and line feed, marks that turn the direction of text, and halves of characters, which stand
# for bytes of a path that are no text.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain(text: object) -> str:
    """The text with control characters as Python writes them, such as ``\\x1b``: they can be read and do nothing."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(text))


def cell(value: Any) -> Any:
    """A value for a CSV file; text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


class Terminal(Console):
    """A console that prints text as it is: brackets and colons are no markup, control characters can be read.

    Args:
        options: of rich's console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **options)  # before it is measured

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # What rich itself tells the terminal, such as to move the cursor, is marked as control.
            yield segment if segment.control else Segment(plain(segment.text), segment.style)
