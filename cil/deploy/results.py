"""A run from Python, in one call: the words of the command line as arguments, and what came of it as one value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jsonargparse import Namespace
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cil.command import config as cfg
from cil.command import session
from cil.command.configurations import as_files
from cil.command.names import class_path, loader
from cil.data.images import Dataset
from cil.data.scenario import Scenario
from cil.deploy import model_file
from cil.deploy.model import Model
from cil.errors import UserError
from cil.experiment.blueprint import Blueprint
from cil.experiment.experiment import Experiment
from cil.experiment.progress import Progress
from cil.experiment.provenance import Origin
from cil.experiment.run import run as engine
from cil.nets import lookup
from cil.report import report
from cil.report.folder import IN_USE, RunFolder
from cil.shown import Terminal
from cil.units import show
from cil.verbs.learned import State, plain

TEMPLATES = Path(__file__).with_name("templates")


class Results:
    """What came of a run.

    Attributes:
        content: what ``results.json`` holds (docs/results_schema.md).
        model: after the last task, in use.
        scenario: that was learned.
    """

    def __init__(self, content: dict[str, Any], model: Model, scenario: Scenario) -> None:
        self.content, self.model, self.scenario = content, model, scenario

    @property
    def evaluator(self) -> str:
        """The method's own, by which it is judged here."""
        return str(self.content["evaluator"])

    @property
    def accuracy(self) -> list[float]:
        """On the test images of all classes seen, after each task, as fractions."""
        return list(self.content["metrics"][self.evaluator]["seen_accuracy"])

    @property
    def average_accuracy(self) -> float:
        """The mean of :attr:`accuracy`: average incremental accuracy."""
        return float(self.content["metrics"][self.evaluator]["average_incremental_accuracy"])

    @property
    def bytes(self) -> list[int]:
        """Carried after each task, every byte counted."""
        return [int(task["bytes"]["strict"]) for task in self.content["tasks"]]

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw accuracy over classes seen.

        Args:
            axes: of matplotlib, to draw several results into one; None: new ones.
        """
        axes = Figure(figsize=(5, 3.5), layout="constrained").add_subplot() if axes is None else axes
        seen = [task["n_seen"] for task in self.content["tasks"]]
        axes.plot(seen, [100 * value for value in self.accuracy], marker="o", label=self.content["name"])
        axes.set(xlabel="classes seen", ylabel="accuracy in %", ylim=(0, 100))
        axes.legend()
        return axes

    def save(self, folder: str | Path) -> None:
        """Write the folder that ``compare`` and :func:`cil.load` read: results, report, and the model.

        Args:
            folder: new or empty.

        Raises:
            UserError: it holds something, or cannot be written.
        """
        place = RunFolder(Path(folder))
        place.check(self.content["config"], resume=False, overwrite=False)
        with place.open(yaml.safe_dump(self.content["config"], sort_keys=False), overwrite=False):
            place.write(self.content)
            model_file.write(self.model.state(), place.path / IN_USE)

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for task, accuracy in zip(self.content["tasks"], self.accuracy, strict=True):
            size = show(task["bytes"]["strict"]).partition(" (")[0]
            yield str(task["task"] + 1), str(task["n_seen"]), f"{100 * accuracy:.1f} %", str(task["exemplars"]), size

    def __repr__(self) -> str:
        lines = [f"{self.content['name']} on {self.content['scenario']['name']}"]
        lines += ["after task {}: {} classes, {}, {} exemplars, {}".format(*row) for row in self._rows()]
        return "\n".join([*lines, f"average accuracy {100 * self.average_accuracy:.1f} %"])

    def _repr_html_(self) -> str:
        environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
        return environment.get_template("results.html").render(
            name=self.content["name"], scenario=self.content["scenario"]["name"], rows=list(self._rows())
        )


def run(*configurations: str, data: str | Dataset | None = None, progress: bool = False, **options: Any) -> Results:
    """Learn all tasks, as ``cil train`` does with the same words.

    ``cil.run("digits", "wa", seed=1, trainer={"epochs": 3})`` is ``cil train digits wa --seed 1 --trainer.epochs 3``.

    Args:
        configurations: names of configurations, such as a protocol and a strategy, or their files.
        data: name of a data set as ``--data`` has it, or a :class:`cil.data.images.Dataset`; None: that of the
            configurations.
        progress: whether to show how far it is.
        options: as on the command line, groups as mappings: ``memory={"exemplars": 200}``; ``strategy`` may be a class.

    Raises:
        UserError: as on the command line.
        DivergedError: the loss became NaN or infinite.
    """
    for name in ("run_dir", "resume", "overwrite", "dry_run", "devices", "num_nodes"):
        if name in options:
            raise UserError(
                f"{name}: cil.run learns in this process and keeps no folder; use cil train, or Results.save"
            )
    given = {key: value for key, value in options.items() if key != "strategy" or not isinstance(value, type)}
    if given.keys() != options.keys():
        given["strategy"] = class_path(options["strategy"])
    if data is not None:
        given["data"] = f"python:{data.name}" if isinstance(data, Dataset) else data  # what was learned is told
    argv = [*as_files(list(configurations)), *_words(given)]
    console = Terminal(quiet=not progress)
    parser, parsed = cfg.parse(argv, "cil.run")
    words = [*map(repr, configurations), *(f"{key}={value!r}" for key, value in given.items())]
    call = f"cil.run({', '.join(words)})"
    load = loader() if not isinstance(data, Dataset) else lambda *args, **others: data
    before = torch.get_num_threads()  # which instantiating the parts changes
    try:
        return _learned(cfg.instantiate(parser, parsed, load, Progress(console)), parser, parsed, call, console)
    finally:
        torch.set_num_threads(before)


def _learned(experiment: Experiment, parser: cfg.Parser, parsed: Namespace, call: str, console: Terminal) -> Results:
    """All tasks, learned."""
    experiment.check()
    resolved = yaml.safe_load(session.kept(parser, parsed))
    origin = Origin.of(experiment, resolved)
    fixed = session.described(experiment, resolved, call)
    features = experiment.known_features(
        cfg.feature_store(parsed.cache, parsed.cache_limit), fixed["machine"]["name"], Progress(console)
    )
    with lookup.use(features):
        records, strategy, exemplars = engine(experiment, progress=Progress(console), origin=origin)
    told = report.results(experiment, records)
    content = {**fixed, "status": "complete", **told, "finished": session.now()}
    blueprint = Blueprint.of(experiment, len(records) - 1)
    state = State(origin, blueprint, plain(strategy, exemplars), (model_file.learned(records),))
    return Results(content, Model(state, experiment.device), experiment.scenario)


def _words(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Options as the command line has them: groups by dotted names, values as YAML."""
    for key, value in options.items():
        if isinstance(value, Mapping) and not prefix and key in (*cfg.GROUPS, "scenario", "strategy"):
            if "class_path" in value:
                yield from (f"--{key}", str(value["class_path"]))
                value = value.get("init_args") or {}
            yield from _words(value, f"{key}.")
        else:
            text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
            yield from (f"--{prefix}{key}", text.removesuffix("\n").removesuffix("\n...").strip())
