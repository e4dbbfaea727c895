"""The program ``cil``: it finds the command that is asked for, and imports nothing of the others."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cil import __version__
from cil.errors import UserError, unknown

HERE = Path(__file__).parent
USAGE = "usage: cil COMMAND ..., and cil COMMAND --help for what a command takes"


def families() -> dict[str, dict[str, Path]]:
    """The commands by family: ``{"runs": {"train": .../runs/train.py}}``."""
    rooms = [HERE / name for name in ("runs", "models", "authors")]
    rooms += sorted(path.parent for path in HERE.glob("*/__init__.py") if path.parent not in rooms)
    return {
        room.name: {path.stem: path for path in sorted(room.glob("*.py")) if path.stem != "__init__"} for room in rooms
    }


def find(name: str) -> str:
    """The module of a command: ``train`` -> ``cil.commands.runs.train``.

    Raises:
        UserError: there is no such command; tells the nearest and all there are.
    """
    found = {command: family for family, commands in families().items() for command in commands}
    if name not in found:
        raise unknown("cil", name, found)
    return f"{__package__}.{found[name]}.{name}"


def overview() -> str:
    """All commands with a sentence each, read from their files without running them."""
    lines = [USAGE]
    for family, commands in families().items():
        lines += ["", _sentence(HERE / family / "__init__.py")]
        lines += [f"  {name:<12} {_sentence(path)}" for name, path in commands.items()]
    return "\n".join(lines)


def _sentence(path: Path) -> str:
    """The first line of a file's docstring, without the command itself."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].partition(": ``")[0].rstrip(".")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``cil``: the first word is the command, the others are its own."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        sys.exit(0)
    if words[0] == "--version":
        print(__version__)
        sys.exit(0)
    try:
        module = find(words[0])
    except UserError as error:
        from cil.shown import plain

        print(plain(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    from cil.command import config  # it imports torch, which takes seconds

    def program(rest: Sequence[str]) -> int:
        return int(importlib.import_module(module).main(rest, program=f"cil {words[0]}"))

    config.main(program, words[1:])
