"""Begin a strategy, with its configuration and its test: ``cil new my_method [--family FOLDER]``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from cil.authoring.begin import begin
from cil.command import config, recorded
from cil.shown import plain


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Write a strategy that works, its configuration and its test, to be changed.")
    made.add_argument("name", help="of the method, such as my_method")
    made.add_argument("--family", help="the folder in which it is written; in a checkout a family of strategies/")
    return made


def main(argv: Sequence[str], program: str = "cil new") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    begun = begin(options.name, options.family)
    for path in (begun.strategy, begun.configuration, begun.test):
        print(plain(f"written: {path}"))
    check = [*recorded.typed(recorded.other(program, "check")), begun.named]
    train = [*recorded.typed(recorded.other(program, "train")), "digits", _from(begun.root, begun.configuration)]
    test = ["python", "-m", "pytest", _from(begun.root, begun.test)]
    if begun.root != Path():
        print(plain(f"from {begun.root}:"))
    for words in (check, test, train):
        print(plain(f"    {shlex.join(words)}"))
    return 0


def _from(root: Path, path: Path) -> str:
    return str(path if root == Path() else path.absolute().relative_to(root))
