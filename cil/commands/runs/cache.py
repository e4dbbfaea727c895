"""The cache of features: ``cil cache list|verify|clear [--key KEY] [--cache DIR]``."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cil.command import config
from cil.errors import UserError
from cil.features.store import Damaged, Store
from cil.shown import Terminal, plain
from cil.units import mib

SHOWN = 12  # digits of a key


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "The cache of features of frozen backbones.")
    made.add_argument("action", choices=("list", "verify", "clear"), help="show, check the checksums of, or remove it")
    made.add_argument("--key", default="", help="only what is kept under the key that begins so")
    made.add_argument("--cache", default="auto", help="its folder, as in the option of a run")
    return made


def table(store: Store, keys: Sequence[str]) -> Table:
    """A row for each key."""
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"{store.root}", title_justify="left")
    for name in ("key", "backbone", "px", "images", "features", "MiB", "last used"):
        made.add_column(name, justify="left" if name in ("key", "backbone") else "right")
    for key in keys:
        told = store.summary(key)
        used = datetime.datetime.fromtimestamp(told["used"]).strftime("%Y-%m-%d %H:%M")
        counts = (str(told["size"] or "-"), str(told["images"]), str(told["features"]), mib(told["bytes"], 1))
        made.add_row(key[:SHOWN], told["backbone"], *counts, used)
    return made


def verify(store: Store, keys: Sequence[str]) -> int:
    """Print what is damaged; the number of segments."""
    damaged = 0
    for path in [path for key in keys for path in store.paths(key)]:
        try:
            store.read(path)
        except FileNotFoundError:
            continue
        except Damaged as error:
            damaged += 1
            print(plain(f"{path} is damaged: {error}"))
    return damaged


def main(argv: Sequence[str], program: str = "cil cache") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    store = config.feature_store(options.cache, 1)
    assert store is not None, "a tool is given a folder"
    keys = store.keys(options.key)
    if options.key and not keys:
        raise UserError(f"--key: nothing is kept under a key that begins with '{options.key}' in {store.root}")
    if options.action == "list":
        Terminal().print(table(store, keys))
        return 0
    if options.action == "verify":
        damaged = verify(store, keys)
        print(plain(f"{sum(len(store.paths(key)) for key in keys)} segments, {damaged} damaged"))
        return int(damaged > 0)
    print(plain(f"{mib(sum(map(store.clear, keys)), 1)} MiB removed from {store.root}"))
    return 0
