"""YAML as people write it, in files and on the command line: read in bounded time, and no key stands twice."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from cil.errors import UserError, shortened

MOST = 2**20  # bytes of a file
LEVELS = 50  # lists and mappings in one another
NODES = 100_000  # values, each alias counted as what it stands for


class Refused(yaml.MarkedYAMLError):
    """YAML, but none that a configuration needs."""


class Loader(yaml.SafeLoader):
    """YAML in which ``5e-4`` is a number, as YAML 1.2 says; PyYAML takes it for text.

    Refused are a key that stands twice, of which PyYAML would silently keep the last, NUL characters, which no path
    has, and what would outgrow time or memory: deep nesting, and aliases of aliases.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.level = 0
        self.sizes: dict[yaml.Node, tuple[int, int]] = {}  # of composed nodes: values and levels, aliases written out

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        self.level += 1
        if self.level > LEVELS:
            raise Refused(
                problem=f"more than {LEVELS} levels in one another", problem_mark=self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.level -= 1
        if node is None:
            return None
        if alias and node not in self.sizes:
            raise Refused(problem="aliases of a value within itself", problem_mark=node.start_mark)
        if not alias:
            self.sizes[node] = values, levels = self._size(node)
            if values > NODES or levels > LEVELS:
                limit = f"{NODES} values or {LEVELS} levels"
                raise Refused(problem=f"aliases that stand for more than {limit}", problem_mark=node.start_mark)
        return node

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= LEVELS:  # before the scanner looks far ahead for the key that this could be
            raise Refused(problem=f"more than {LEVELS} levels in one another", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def _size(self, node: yaml.Node) -> tuple[int, int]:
        if isinstance(node, yaml.MappingNode):
            inner = [self.sizes[part] for pair in node.value for part in pair]
        else:
            inner = [self.sizes[part] for part in node.value] if isinstance(node, yaml.SequenceNode) else []
        return 1 + sum(values for values, _ in inner), 1 + max((levels for _, levels in inner), default=0)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise Refused(problem=f"'{key.value}' stands twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if "\0" in node.value:
            raise Refused(problem="a NUL character", problem_mark=node.start_mark)
        return node


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: it is none; ``Refused``: it is none that a configuration needs.
        ValueError: a date or a number that there is not.
    """
    return yaml.load(text, Loader)


def read(path: str) -> dict[Any, Any]:
    """The keys and values of a YAML file.

    Args:
        path: as given to ``--config``.

    Raises:
        UserError: it cannot be read, is larger than 1 MiB, or holds something else; says what and where.
    """
    where = f"--config: {path}"
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST + 1)
        if len(content) > MOST:
            raise UserError(f"{where} has more than 1 MiB, which no configuration needs")
        value = parse(content.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{where}: {os.strerror(error.errno or 0)}") from error
    except UserError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise _unfit(where, error) from error
    return mapping(where, value)


def value(where: str, text: str) -> Any:
    """What a text of the command line says as YAML; ``where`` names its option in errors.

    Raises:
        UserError: it is no YAML, or none that a configuration needs.
    """
    try:
        return parse(text)
    except (yaml.YAMLError, ValueError) as error:
        raise _unfit(f"{where}: {shortened(text)}", error) from error


def check(where: str, text: str) -> None:
    """Refuse a text of the command line that no configuration needs; what is no YAML is left to its option.

    Raises:
        UserError: a key stands twice, or it would outgrow time or memory.
    """
    if "\0" in text:
        raise UserError(f"{where}: a NUL character in {text!r}; no value has one")
    try:
        yaml.compose(text, Loader)
    except Refused as error:
        raise UserError(f"{where}: {_told(error)}") from error
    except yaml.YAMLError:
        pass


def mapping(where: str, value: Any) -> dict[Any, Any]:
    """The value, if it is a mapping.

    Raises:
        UserError: it is something else; ``where`` says of what.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: must hold keys and values, not {shortened(value)}")
    return value


def _unfit(where: str, error: Exception) -> UserError:
    kind = "cannot be used" if isinstance(error, Refused) else "is not YAML"
    return UserError(f"{where} {kind}: {_told(error)}")


def _told(error: Exception) -> str:
    """One line."""
    if isinstance(error, Refused) and error.problem_mark is not None:
        return f"{error.problem}, in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())
