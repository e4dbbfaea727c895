"""The command line: YAML and flags become an experiment; a mistake becomes a paragraph that names the legal keys."""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings

from cil.command import configurations, reading, signals
from cil.command.names import CLASSES, class_path, files, find_class, strategies
from cil.data.augmentation import Augmentation
from cil.data.images import Dataset
from cil.data.scenario import ScenarioBuilder
from cil.data.seeds import Seeds
from cil.errors import UserError, check_number, nearest, shortened, unknown
from cil.experiment.experiment import Experiment
from cil.experiment.progress import Progress
from cil.features.store import Store, default_root
from cil.files import check_folder
from cil.learning.strategy import Strategy
from cil.learning.trainer import Trainer
from cil.machine.device import keep_freed_memory, pick_device, pick_precision
from cil.memory.budget import Reference
from cil.memory.exemplars import Memory
from cil.nets.network import Model, Network, find_backbone
from cil.shown import plain
from cil.units import parse_bytes

GROUPS: dict[str, type] = {"model": Model, "trainer": Trainer, "memory": Memory, "augmentation": Augmentation}
SEEDS = ("init", "data", "exemplars")
MOST_WORKERS = 1024  # threads, or processes: more than processors have, and few enough to be started
DEFAULT_SCENARIO = "scenarios.class_incremental.ClassIncremental"


def settings(
    *,
    data: str = "digits",
    root: str = "data",
    image_size: int | None = None,
    train_per_class: int | None = None,
    images: str = "auto",
    workers: int | None = None,
    evaluators: list[str] | None = None,
    calibration: float | None = None,
    seed: int = 0,
    seeds: dict[Literal["init", "data", "exemplars"], int] | None = None,
    device: str = "auto",
    precision: Literal["auto", "32", "bf16-mixed", "16-mixed", "64", 32, 64] = "auto",
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None,
    devices: int = 1,
    num_nodes: int = 1,
    threads: int | None = None,
    run_dir: str | None = None,
    checkpoint_every: int = 10,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    cache: str | None = "auto",
    cache_limit: int | str = "20GiB",
) -> None:
    """Options of a run beside its parts.

    Args:
        data: ``digits``, ``cifar10``, ``cifar100``, ``mnist``, ``fashion_mnist``, ``svhn``, ``npz:PATH`` or
            ``folder:PATH``.
        root: where downloaded data sets are kept.
        image_size: side in pixels to which every image is resized once on loading; null keeps the stored size.
        train_per_class: training images to take of each class, drawn once and alike in every run; null takes all.
        images: where the decoded images of ``folder:`` lie: ``memory``; ``files``, which are decoded whenever they are
            read; ``auto``, memory if they take at most half of what is free, else files; or the path of a folder, where
            they are decoded once for all runs. It changes no result.
        workers: processes that decode image files; 0: threads of this one; null: as many as ``threads``.
        evaluators: ``linear``, ``nearest_mean``, ``nearest_mean_flip``; null: linear, and nearest_mean if there are
            exemplars. The strategy's own is always added.
        calibration: share of each class's training images that is not learned but tells how sure scores are, such as
            0.1: probabilities and a threshold for unknown images come from them; null: all images are learned.
        seed: of initial weights, of data order and augmentation, and of exemplar selection.
        seeds: other seeds for ``init``, ``data`` or ``exemplars`` alone, such as ``{init: 3}``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``32``, ``64``, or ``bf16-mixed`` or, on NVIDIA GPUs, ``16-mixed`` for matrix products in half
            precision; ``auto`` is mixed where the device computes that fast, else ``32``.
        compile: ``torch.compile`` losses in this mode, ``reduce-overhead`` with CUDA graphs; null: not. Each stage of
            each task is compiled anew, for batches of one shape, so it pays off in long stages on a GPU.
        devices: processes on this machine that learn together, each on a GPU of its own or a part of the processor;
            ``trainer.batch_size`` is shared among them. Under ``torchrun`` its ``--nproc-per-node``.
        num_nodes: machines, each of which starts the same command under ``torchrun``.
        threads: processor threads; null: all cores. A CPU run is bit-identical to another with as many threads.
        run_dir: folder of the run; null: ``runs/<strategy>-<data>-seed<seed>``.
        checkpoint_every: epochs between checkpoints inside a task; 0: only after tasks.
        resume: go on with an interrupted run in ``run_dir``.
        overwrite: replace what is in ``run_dir``.
        dry_run: print the tasks with exemplars and bytes after each, and stop.
        cache: folder that keeps the features of frozen backbones for all runs; ``auto``: ``cil-framework/features`` in
            ``$XDG_CACHE_HOME`` or ``~/.cache``; null: nothing is kept. It changes no result.
        cache_limit: most bytes of that folder, such as ``20GiB``; the least recently used features go first.
    """


class Parser(ArgumentParser):
    """jsonargparse's parser with errors of one paragraph."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_paragraph(message))


class PlainParser(argparse.ArgumentParser):
    """argparse's parser for tools without options of a run; its errors are one paragraph that ends with the usage."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=Path(prog).name, allow_abbrev=False, description=description)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. {' '.join(self.format_usage().split())}")


@functools.cache
def make_parser(prog: str) -> Parser:
    """The parser of ``tools/train.py``: options, groups and classes, each documented by its constructor.

    It is made once: a sweep parses hundreds of command lines.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    parser = Parser(
        prog=prog, allow_abbrev=False, description="Learn a class-incremental scenario and report accuracy and bytes."
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file; several are merged from left to right")
    parser.add_function_arguments(settings)
    parser.add_argument(
        "--scenario",
        type=ScenarioBuilder,
        default={"class_path": DEFAULT_SCENARIO},
        help="how the data set is cut into tasks",
    )
    parser.add_argument(
        "--strategy",
        type=Callable[[Network], Strategy],
        required=True,
        help="the method: the name of a file in strategies/, its class, or package.module.Class",
    )
    for name, group in GROUPS.items():
        parser.add_class_arguments(group, name)
    return parser


def parse(argv: Sequence[str], prog: str = "train.py") -> tuple[Parser, Namespace]:
    """Parse a command line.

    Args:
        argv: arguments without the program's name. Configurations may be named first: ``digits wa --seed 3``.
        prog: name shown in the help.

    Returns:
        The parser and the configuration, resolved but not yet instantiated.

    Raises:
        UserError: an unknown key or name, a wrong type, an unreadable file.
    """
    argv = configurations.as_files(argv)
    argv = [re.sub(r"^--dry-run(?==|$)", "--dry_run", word) for word in argv]
    argv = _flags(argv, ("--resume", "--overwrite", "--dry_run"))
    parser = make_parser(prog)
    if any(word in ("-h", "--help") or re.match(r"--\w+\.help", word) for word in argv):
        strategies()  # so that the help can list them
    else:
        check_keys(argv)
    config = parser.parse_args(list(_with_named_classes(argv)))
    return parser, config


def of_content(content: dict[str, Any]) -> tuple[Parser, Namespace]:
    """A configuration that a run kept, parsed again; classes under former names are found.

    Args:
        content: as ``config.yaml`` has it.

    Raises:
        UserError: a class, a backbone's module or an option is not there any more.
    """
    parser = make_parser("a model's configuration")
    known = dict(content)
    for kind in CLASSES:
        if isinstance(known.get(kind), dict):
            known[kind] = {**known[kind], "class_path": class_path(find_class(kind, known[kind]["class_path"]))}
    return parser, parser.parse_object(known)


def instantiate(
    parser: Parser, config: Namespace, load: Callable[..., Dataset], progress: Progress | None = None
) -> Experiment:
    """Load the data and build all parts of the run.

    Args:
        parser: from :func:`parse`.
        config: from :func:`parse`.
        load: ``scenarios.datasets.load``, handed in because the engine does not import scenarios.
        progress: told how far reading the data is; None: nobody.

    Raises:
        UserError: something does not fit; names the option.
    """
    built = parser.instantiate(config)
    check_number("checkpoint_every", built.checkpoint_every, least=0, whole=True)
    for key in ("threads", "workers", "devices", "num_nodes"):
        value = getattr(built, key)
        if value is not None:
            check_number(key, value, least=0 if key == "workers" else 1, most=MOST_WORKERS, whole=True)
    if built.threads is not None:
        torch.set_num_threads(built.threads)
    places = {key: getattr(built, key) for key in ("root", "image_size", "train_per_class", "images", "workers")}
    dataset = load(built.data, **places, progress=progress)
    device = pick_device(built.device)
    for name in built.seeds or {}:
        if name not in SEEDS:
            raise unknown("seeds", name, SEEDS)
    seeds = Seeds(**dict.fromkeys(SEEDS, built.seed) | dict(built.seeds or {}))
    scenario = built.scenario.build(dataset, seeds.data)
    channels = scenario.image_shape[0]
    if built.model.weights:
        built.model.weights = built.model.weights.replace("{seed}", str(seeds.init))
    built.memory.check()
    return Experiment(
        scenario=scenario,
        build=lambda: built.strategy(built.model.build(channels)),
        trainer=built.trainer,
        memory=built.memory,
        augmentation=built.augmentation,
        seeds=seeds,
        evaluators=tuple(built.evaluators or ()),
        device=device,
        precision=pick_precision(str(built.precision), device),
        compile=built.compile,
        calibration=built.calibration,
        reference=reference(built.memory.budget, built.model, channels),
    )


def reference(budget: Any, model: Model, channels: int) -> Reference | None:
    """The method that a budget ``{as: {strategy: der, exemplars: 2000}}`` names; None for other budgets.

    Args:
        budget: ``memory.budget`` as it was given.
        model: the run's own, which the other method shares unless the budget names another backbone.
        channels: of the images.

    Raises:
        UserError: a key, the strategy, its options or the backbone is wrong; nothing is built to find out.
    """
    if not isinstance(budget, dict):
        return None
    inner = budget.get("as")
    if set(budget) != {"as"} or not isinstance(inner, dict):
        raise UserError("memory.budget: a mapping must be {as: {strategy: NAME, exemplars: N}}")
    keys = ("strategy", "exemplars", "init_args", "backbone")
    for key in inner:
        if key not in keys:
            raise unknown("memory.budget.as", key, keys)
    exemplars, name = inner.get("exemplars"), inner.get("strategy")
    options = reading.mapping("memory.budget.as.init_args", inner.get("init_args") or {})
    if not isinstance(name, str) or isinstance(exemplars, bool) or not isinstance(exemplars, int) or exemplars < 0:
        raise UserError("memory.budget.as: needs strategy, a name, and exemplars, an integer >= 0")
    own = copy.copy(model)
    try:
        kind = find_class("strategy", name)
        if "backbone" in inner:
            own.backbone = str(inner["backbone"])
            find_backbone(own.backbone)
    except UserError as error:
        raise UserError(f"memory.budget.as: {error}") from error
    if own.backbone != model.backbone:  # what belongs to the weights of the one does not fit the other
        own.weights, own.frozen, own.preprocessing, own.pretrained_classes = None, False, None, None

    def refused(error: TypeError) -> UserError:
        return UserError(f"memory.budget.as.init_args: {kind.__name__} refused them: {error}")

    try:
        inspect.signature(kind).bind(own, **options)
    except TypeError as error:
        raise refused(error) from error

    def build() -> Strategy:
        try:
            return kind(own.build(channels), **options)
        except TypeError as error:
            raise refused(error) from error

    return Reference(build, exemplars, f"{kind.__name__} with {own.backbone} and {exemplars} exemplars")


def feature_store(cache: str | None, limit: int | str) -> Store | None:
    """The cache of features that ``cache`` and ``cache_limit`` ask for; None: none.

    Raises:
        UserError: a limit that is no number of bytes, or a place that is a file.
    """
    size = parse_bytes(limit, "cache_limit")
    if cache is None:
        return None
    root = default_root() if cache == "auto" else Path(cache).expanduser()
    check_folder("cache", root, "legal: auto, null or a folder")
    return Store(root, size)


def _with_named_classes(argv: Sequence[str]) -> Iterator[str]:
    """The command line with files and named classes as YAML in which short names are class paths.

    A class that takes another's place starts with its own defaults: an option does not go over from one class to the
    other because both have one of that name.
    """
    before: dict[str, type | None] = {"scenario": find_class("scenario", DEFAULT_SCENARIO), "strategy": None}

    def named(kind: str, value: Any) -> Any:
        if isinstance(value, str):
            value = {"class_path": value}
        if not isinstance(value, dict) or "class_path" not in value:
            return value
        new, old = find_class(kind, value["class_path"]), before[kind]
        before[kind] = new
        shared = _defaults(new).keys() & _defaults(old).keys() if old is not None and old is not new else set()
        own = {name: _defaults(new)[name] for name in sorted(shared)}
        return {**value, "class_path": class_path(new), "init_args": {**own, **(value.get("init_args") or {})}}

    words = iter(argv)
    for word in words:
        match = re.fullmatch(rf"--(config|{'|'.join((*CLASSES, *GROUPS))})(?:\.class_path)?(?:=(.*))?", word, re.S)
        given = None if match is None else next(words, None) if match[2] is None else match[2]
        if match is None or given is None:
            yield word
        elif match[1] == "config":
            content = reading.read(given)
            yield _as_config({key: named(key, value) if key in CLASSES else value for key, value in content.items()})
        elif match[1] in GROUPS:
            yield _as_config({match[1]: _group(match[1], given)})
        else:
            yield _as_config({match[1]: named(match[1], reading.value(match[1], given))})


def _group(name: str, given: str) -> dict[Any, Any]:
    """The options of a group that stand in one text, or in a file."""
    value = reading.value(name, given)
    return reading.read(value) if isinstance(value, str) else reading.mapping(name, value)


def _as_config(content: dict[str, Any]) -> str:
    return f"--config={yaml.safe_dump(content, sort_keys=False)}"


def _defaults(owner: type | None) -> dict[str, Any]:
    """Defaults of what a constructor takes, as YAML has them; without what has none."""
    found = {name: parameter.default for name, parameter in _keywords(owner).items()} if owner else {}
    known = {name: value for name, value in found.items() if value is not inspect.Parameter.empty}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}


def _flags(argv: Iterable[str], names: tuple[str, ...]) -> list[str]:
    """Let switches stand alone: ``--resume`` means ``--resume true``."""
    words = list(argv)
    out = []
    for index, word in enumerate(words):
        following = words[index + 1].lower() if index + 1 < len(words) else ""
        out.append(f"{word}=true" if word in names and following not in ("true", "false") else word)
    return out


# --- unknown keys -----------------------------------------------------------------------------------------------------


def check_keys(argv: Sequence[str]) -> None:
    """Refuse keys that nothing takes, naming the file or flag, the nearest legal key and all legal keys.

    Raises:
        UserError: the first such key.
    """
    chosen: dict[str, type | None] = {"scenario": None, "strategy": None}
    given: list[tuple[str, str]] = []  # (dotted key, where it stands)
    words = list(argv)
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("--"):
            raise UserError(f"'{word}' stands alone: options are written --key value, after names of configurations")
        key, has_value, value = word[2:].partition("=")
        if not has_value and index < len(words) and not words[index].startswith("--"):
            value, index = words[index], index + 1
        reading.check(f"--{key}", value)
        if key == "config":
            where, found = value, dotted(reading.read(value))
        elif key in GROUPS and value:
            where, found = "the command line", dotted({key: _group(key, value)})
        elif key in CLASSES:
            where, found = "the command line", dotted({key: reading.value(key, value)})
        else:
            where, found = "the command line", iter([(key, value)])
        for name, item in found:
            given.append((name, where))
            _note_class(chosen, name, item)
            _refuse_classes(name, item)
    if chosen["strategy"] is None:
        raise UserError(
            "strategy: none is named. Give --strategy NAME or a --config that names one. Legal: "
            f"{', '.join(files('strategy'))}, or package.module.Class of your own."
        )
    top = [*_parameters(settings), *GROUPS, *CLASSES]
    for key, where in given:
        head, *rest = re.sub(r"[+]$", "", key).split(".")
        if head not in top and not (key == "print_config" and where == "the command line"):
            raise _unknown_key(key, where, top)
        if not rest or head == "seeds":
            continue
        rest = rest[1:] if rest[0] == "init_args" else rest
        if head in CLASSES and rest in ([], ["class_path"]):
            continue
        owner = (
            GROUPS.get(head)
            or chosen.get(head)
            or (find_class("scenario", DEFAULT_SCENARIO) if head in CLASSES else None)
        )
        legal = _parameters(owner) if owner else []
        if not rest or rest[0] not in legal:
            raise _unknown_key(".".join([head, *rest]), where, [f"{head}.{parameter}" for parameter in legal] or top)


def _unknown_key(key: str, where: str, legal: list[str]) -> UserError:
    return UserError(f"{where}: no option '{key}'; {nearest(key, legal)}Legal: {', '.join(sorted(legal))}.")


def _note_class(chosen: dict[str, type | None], key: str, value: Any) -> None:
    """See that a class or a group is written as one, and note the class that is chosen."""
    if key in GROUPS:
        reading.mapping(key, value)
    for kind in CLASSES:
        if key == f"{kind}.init_args" and value is not None:
            reading.mapping(key, value)
        if key in (kind, f"{kind}.class_path"):
            if not isinstance(value, str):
                raise UserError(f"{key}: {shortened(value)} must be a name, or class_path and init_args: a mapping")
            chosen[kind] = find_class(kind, value)


def _refuse_classes(key: str, value: Any) -> None:
    """Refuse a class among an option's own values: jsonargparse would import and call whatever it names.

    Args:
        key: of the option.
        value: as a file has it, or the text of the command line.
    """
    if isinstance(value, str) and "class_path" in value:
        with contextlib.suppress(yaml.YAMLError, ValueError):
            value = reading.parse(value)
    named, waiting = "class_path" in key.removesuffix("+").split(".")[2:], [value]
    while waiting and not named:
        value = waiting.pop()
        named = isinstance(value, dict) and "class_path" in value
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if named:
        raise UserError(f"{key}: class_path names a class, which strategy and scenario alone do; give plain values")


def _parameters(owner: Any) -> list[str]:
    """Names that a function or constructor takes, without what is handed in by the engine."""
    return list(_keywords(owner))


def _keywords(owner: Any) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters of a function or constructor by name."""
    found: dict[str, inspect.Parameter] = {}
    classes = owner.__mro__ if inspect.isclass(owner) else [owner]
    for place in classes:
        target = place.__init__ if inspect.isclass(place) else place
        parameters = inspect.signature(target).parameters.values()
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY:
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break  # only a constructor with **kwargs hands anything on to its parents
    return found


def dotted(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys that a YAML file sets, as a command line would write them; only classes and groups are opened."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        opens = name in (*GROUPS, *CLASSES) or name in [f"{kind}.init_args" for kind in CLASSES]
        if isinstance(value, dict) and opens:
            yield from dotted(value, f"{name}.")
        else:
            yield name, value


def _paragraph(message: str) -> str:
    """A message of jsonargparse without its internals: key, what was expected, what was given."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    last = re.split(r'Parser key "[^"]+":', message)[-1]
    text = " ".join(last.split())
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"\. Got value: Namespace\(.*", ".", text)
    text = re.sub(r"typing\.", "", text)
    if not keys:
        return text
    # The message of a class's own parser comes wrapped into ours: "strategy: temperature: Expected".
    return re.sub(r"^(\S+): (\S+): Expected", r"\1.\2: Expected", f"{'.'.join(keys)}: {text}")


def main(program: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line, with the current folder's modules in reach.

    User's mistakes end with status 2 and one paragraph, Ctrl-C with status 130; SIGTERM and SIGHUP do as it does, with
    128 and their number.
    """
    sys.path.insert(0, "")
    keep_freed_memory()
    try:
        with signals.as_interruptions():
            status = program(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(plain(f"error: {error}"), file=sys.stderr)
        status = 2
    except (KeyboardInterrupt, Exception) as error:
        interruption = signals.behind(error)
        if interruption is None:
            raise
        message, status = signals.told(interruption)
        with contextlib.suppress(OSError):  # after SIGHUP there may be no terminal
            print(message, file=sys.stderr, flush=True)
    sys.exit(status)
