"""A new strategy with its configuration and its test, written from templates that work as they are."""

from __future__ import annotations

import contextlib
import datetime
import keyword
import os
import re
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cil.command.names import files, importable
from cil.errors import UserError, unknown
from cil.files import check_folder, write_atomic
from cil.neighbours import HOME, NAMES, is_ours

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Begun:
    """The files of a new strategy, and how it is named.

    Attributes:
        strategy: its file.
        configuration: its YAML file.
        test: its test.
        root: the folder from which it is used.
        named: what ``--strategy`` and ``cil check`` call it.
        module: by which Python imports it from there.
        cls: its class.
    """

    strategy: Path
    configuration: Path
    test: Path
    root: Path
    named: str
    module: str
    cls: str


def begin(name: str, family: str | None = None) -> Begun:
    """Write a new strategy, its configuration and its test.

    In a checkout a family is one of ``strategies/``, and configuration and test go where those of all strategies are.
    Elsewhere the three lie together.

    Args:
        name: of the method, such as ``my_method``.
        family: of the checkout, or a folder; None: the current folder.

    Raises:
        UserError: a name that Python or this package has, or that is none; a file that is there; a place that cannot be
            written. Nothing was changed.
    """
    _check_name(name)
    cls = "".join(part.capitalize() for part in name.split("_"))
    begun = _in_checkout(name, cls, family) if family and _is_checkout(Path.cwd()) else _alone(name, cls, family)
    for path in (begun.strategy, begun.configuration, begun.test):
        check_folder("new", path.parent)
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} is already there; give the method another name or remove it")
    _write(_texts(begun))
    return begun


def _check_name(name: str) -> None:
    legal = "give letters, digits and _, the first a small letter, such as my_method"
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(f"'{name}' is no name of a method; {legal}")
    bare = name.replace("_", "")
    for known in files("strategy"):
        if known.replace("_", "") == bare:
            raise UserError(f"'{name}': there is a strategy '{known}'; give the method another name")
    if _is_elsewhere(name):
        raise UserError(f"'{name}' is a module of Python or of what is installed; give the method another name")


def _is_elsewhere(name: str) -> bool:
    """Whether an import of that name finds something outside the current folder, which a new file would hide."""
    if name in sys.stdlib_module_names:
        return True
    path = [entry for entry in sys.path if os.path.abspath(entry) != os.getcwd()]
    found = PathFinder.find_spec(name, path)
    return found is not None and found.loader is not None


def _is_checkout(folder: Path) -> bool:
    parts = [folder / part for part in ("strategies", "configs/strategies", "tests")]
    return all(part.is_dir() for part in parts) and folder.samefile(HOME)


def _in_checkout(name: str, cls: str, family: str) -> Begun:
    """Where the files of a strategy go that is to be one of ours."""
    families = {path.parent.name: path.parent for path in (HOME / "strategies").glob("*/__init__.py")}
    room = Path(os.path.normpath(family)).name
    if room not in families or (family != room and Path(family).absolute() != families[room]):
        raise unknown("--family", family, families)
    here = Path()
    return Begun(
        strategy=here / "strategies" / room / f"{name}.py",
        configuration=here / "configs/strategies" / f"{name}.yaml",
        test=here / "tests" / f"test_{name}.py",
        root=here,
        named=name,
        module=f"strategies.{room}.{name}",
        cls=cls,
    )


def _alone(name: str, cls: str, family: str | None) -> Begun:
    """Where they go in a folder of the user's own."""
    folder = Path(os.path.normpath(family or "."))
    module, root = importable(Path(os.path.abspath(folder / f"{name}.py")))
    first, *inner = module.split(".")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in module.split(".")):
        raise UserError(f"--family: {folder}: Python imports from folders whose names have letters, digits and _ alone")
    if inner and (is_ours(".".join(module.split(".")[:2])) or (_is_elsewhere(first) and first not in NAMES)):
        raise UserError(f"--family: {folder}: Python has modules of that name elsewhere; give another folder")
    return Begun(
        strategy=folder / f"{name}.py",
        configuration=folder / f"{name}.yaml",
        test=folder / f"test_{name}.py",
        root=Path() if Path(root) == Path.cwd() else Path(root),
        named=f"{module}.{cls}" if inner else name,
        module=module,
        cls=cls,
    )


def _texts(begun: Begun) -> dict[Path, str]:
    """What is written in each file."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    ours = begun.module.startswith("strategies.") and begun.configuration.parts[0] == "configs"
    told = {
        "cls": begun.cls,
        "year": datetime.date.today().year,
        "class_path": begun.cls if ours else f"{begun.module}.{begun.cls}",
        # A test that lies beside the strategy finds it there, from wherever it is started.
        "module": begun.module if ours else begun.strategy.stem,
        "configuration": f'parents[1] / "{begun.configuration}"'
        if ours
        else f'with_name("{begun.configuration.name}")',
    }
    sources = {
        begun.strategy: "strategy.py.jinja",
        begun.configuration: "configuration.yaml.jinja",
        begun.test: "test.py.jinja",
    }
    return {path: environment.get_template(source).render(told) for path, source in sources.items()}


def _write(texts: dict[Path, str]) -> None:
    """All files or none; folders are made for them."""
    made: list[Path] = []
    try:
        for path, text in texts.items():
            missing = [place for place in path.parents if not place.exists()]
            for place in reversed(missing):
                place.mkdir()
                made.append(place)
            write_atomic(path, text.encode())
            made.append(path)
    except BaseException as error:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, OSError) and not isinstance(error, UserError):
            raise UserError(f"{error.filename} cannot be made: {error.strerror}; nothing was written") from error
        raise
