"""A sweep: what its file expands to, what it refuses, and that neither a failure nor a kill costs more than one run."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import lzma
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from cil.command import config
from cil.errors import UserError
from cil.report import report
from cil.report.folder import RunFolder
from cil.sweep import command as sweeps  # which has the names of all its parts
from scenarios.datasets import load
from tools import sweep as tool
from tools import train

ROOT = Path(__file__).resolve().parents[1]
DIGITS = str(ROOT / "configs/protocols/digits.yaml")


def method(name):
    return str(ROOT / f"configs/strategies/{name}.yaml")


BASE = {
    "out": "out",
    "protocols": {"digits": DIGITS},
    "methods": {"replay": method("replay")},
    "budgets": [{"exemplars": 50}],
    "seeds": [0],
}


def write(folder, **changes):
    """A file with the base's content and these changes; None leaves a key out."""
    content = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**content, "out": str(folder / content.get("out", "out"))}, sort_keys=False))
    return str(path)


def expand(folder, **changes):
    return sweeps.expand(sweeps.read(write(folder, **changes)))


def options(run):
    """What a run's command line resolves to."""
    _, parsed = config.parse(run.argv)
    return parsed


def names(runs):
    return [f"{run.budget} {run.method}" for run in runs]


# --- what a file expands to -------------------------------------------------------------------------------------------


def test_a_file_becomes_runs_with_plain_commands(tmp_path):
    runs = expand(
        tmp_path,
        protocols={"digits": DIGITS, "halves": {"config": [DIGITS], "scenario": {"step": 5}, "trainer.lr": 0.5}},
        methods={
            "replay": [method("replay")],
            "WA, T = 3": {"config": method("wa"), "set": {"strategy": {"init_args": {"temperature": 3}}}},
        },
        budgets=[{"exemplars": 50}, {"per_class": 4, "selection": "random"}],
        seeds=[0, 7],
        set={"trainer.epochs": 2, "trainer.per_task": {1: {"lr": 1e-5}}},
        threads=2,
    )
    assert len(runs) == 2 * 2 * 2 * 2
    assert len({run.folder.path for run in runs}) == 16
    last = runs[-1]
    assert last.name == "halves/per_class-4-selection-random/WA, T = 3/seed7"
    assert last.folder.path == tmp_path / "out/halves/per_class-4-selection-random/WA_T_=_3/seed7"
    assert last.argv[-5:] == ("--seed", "7", "--run_dir", str(last.folder.path), "--resume")
    assert shlex.split(sweeps.command(last)) == ["python", "tools/train.py", *last.argv]
    parsed = options(last)
    assert (parsed.scenario.init_args.step, parsed.trainer.lr, parsed.trainer.epochs) == (5, 0.5, 2)
    assert parsed.trainer.per_task == {1: {"lr": 1e-5}}
    assert parsed.strategy.init_args.temperature == 3
    assert (parsed.memory.exemplars, parsed.memory.per_class, parsed.memory.selection) == (None, 4, "random")
    assert (parsed.threads, parsed.seed, last.threads) == (2, 7, 2)
    assert last.config["strategy"]["class_path"] == "strategies.rehearsal.wa.WA"
    assert options(runs[0]).memory.exemplars == 50


def test_what_stands_nearer_to_the_run_wins(tmp_path):
    (run,) = expand(
        tmp_path,
        protocols={"digits": {"config": DIGITS, "trainer.epochs": 2, "trainer.lr": 0.2, "trainer.gamma": 0.2}},
        set={"trainer.epochs": 3, "trainer.lr": 0.3, "threads": 3},
        methods={"replay": {"config": method("replay"), "set": {"trainer.epochs": 4}}},
        budgets=[{"exemplars": 50, "methods": {"replay": {"trainer.epochs": 5, "model": {"backbone": "convnet4"}}}}],
    )
    parsed = options(run)
    assert (parsed.trainer.epochs, parsed.trainer.lr, parsed.trainer.gamma) == (5, 0.3, 0.2)
    assert (parsed.model.backbone, parsed.threads, run.threads) == ("convnet4", 3, 3)


def test_budgets_have_names_and_methods_choose_among_them(tmp_path):
    runs = expand(
        tmp_path,
        methods={
            "replay": {"config": method("replay"), "budgets": ["small", "100"]},
            "wa": {"config": method("wa"), "except": ["small"]},
            "icarl": {"config": method("icarl"), "memory": {"exemplars": 70}},
        },
        budgets={"small": {"exemplars": 20}, 100: {"exemplars": 100}, "bytes": {"per_class": 3}},
    )
    assert names(runs) == ["small replay", "exemplars-70 icarl", "100 replay", "100 wa", "bytes wa"]
    assert options(runs[1]).memory.exemplars == 70
    (given,) = expand(tmp_path, budgets=[{"exemplars": 20, "name": "tiny"}])
    assert given.budget == "tiny"
    (own,) = expand(tmp_path, budgets=None)
    assert (own.budget, options(own).memory.exemplars) == ("protocol", 100)


def test_methods_choose_among_protocols(tmp_path):
    protocols = {"short": {"config": DIGITS, "trainer.epochs": 1}, "long": {"config": DIGITS, "trainer.epochs": 2}}
    methods = {"replay": method("replay"), "wa": {"config": method("wa"), "protocols": ["long"]}}
    runs = expand(tmp_path, protocols=protocols, methods=methods, budgets=None)
    assert [(run.protocol, run.method) for run in runs] == [("short", "replay"), ("long", "replay"), ("long", "wa")]


def test_methods_without_a_choice_of_exemplars_run_once_for_each_seed(tmp_path):
    methods = {name: method(name) for name in ("finetune", "replay", "joint")}
    runs = expand(tmp_path, methods=methods, budgets=[{"exemplars": 20}, {"per_class": 5}], seeds=[0, 1])
    first = ["exemplars-0 finetune", "exemplars-20 replay", "exemplars-all joint"]
    assert names(runs[::2]) == [*first, "per_class-5 replay"]
    assert [options(run).memory.exemplars for run in runs[::2]] == [0, 20, "all", None]


def test_a_budget_may_have_seeds_of_its_own(tmp_path):
    runs = expand(tmp_path, budgets=[{"exemplars": 20, "seeds": [3, 4]}, {"exemplars": 30}], seeds=[0])
    assert [(run.budget, run.seed) for run in runs] == [("exemplars-20", 3), ("exemplars-20", 4), ("exemplars-30", 0)]
    with pytest.raises(UserError, match=r"exemplars-20: seeds: \[3, 3\] names a seed twice"):
        expand(tmp_path, budgets=[{"exemplars": 20, "seeds": [3, 3]}])


def test_bytes_are_passed_through(tmp_path):
    methods = {"finetune": method("finetune"), "replay": method("replay")}
    budgets = ["160KiB", 300000, {"budget": "0.2MiB", "align": "always"}]
    runs = expand(tmp_path, methods=methods, budgets=budgets)
    assert list(dict.fromkeys(run.budget for run in runs)) == ["160KiB", "300000", "0.2MiB-align-always"]
    assert len(runs) == 6  # a method without exemplars, too, may or may not fit into a budget
    for run in runs:
        memory = options(run).memory
        assert (memory.exemplars, memory.per_class) == (None, None)
    assert [(memory.budget, memory.align) for memory in (options(run).memory for run in runs[::2])] == [
        ("160KiB", "final"),
        (300000, "final"),
        ("0.2MiB", "always"),
    ]


# Options of strategies that are younger than published runs, with the values that do what was done then.
SINCE = {
    **{"retrain_schedule": "step", "retrain_weight_decay": 5e-4, "fresh_head": False},  # no such stage with `align`
    **{"compress_weight_decay": None, "herding": "scored", "images": None, "mean_over": None},
    **{"unit_length": True, "similarity": "cosine", "restart": True},  # a linear head, which sees any length
    **{"residual_batch": None},
}
# Sweeps without published runs.
UNPUBLISHED = ("cifar100_trained", "quick")


@functools.cache
def published() -> dict[str, dict[str, Any]]:
    """The strategies' options of published runs, by run folder."""
    found = {}
    for path in (ROOT / "results").glob("*/runs.jsonl.xz"):
        for line in lzma.decompress(path.read_bytes()).splitlines():
            given = json.loads(line)["results"]["config"]
            found[given["run_dir"]] = given["strategy"].get("init_args") or {}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_sweep_of_the_repository_is_one(monkeypatch, path):
    monkeypatch.chdir(ROOT)
    runs = sweeps.expand(sweeps.read(str(path)))
    assert runs and (len(runs) == 8 or path.stem != "quick")
    pairs = [(run, published()[run.config["run_dir"]]) for run in runs if run.config["run_dir"] in published()]
    assert len(pairs) > 10 or path.stem in UNPUBLISHED
    for run, before in pairs:
        now = run.config["strategy"].get("init_args") or {}
        assert {key: {**SINCE, **before}.get(key, "?") for key in now} == now, run.name


def test_the_documented_example_is_a_sweep(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "sweep.yaml"
    path.write_text(re.search(r"```yaml\n(.*?)```", Path("docs/sweeps.md").read_text(), re.S)[1])
    runs = sweeps.expand(sweeps.read(str(path)))
    assert len(runs) == 36
    backbones = [options(run).model.backbone for run in runs if run.method == "der" and run.seed == 0]
    assert backbones == ["convnet2", "cifar_resnet14", "cifar_resnet32"]
    assert (runs[-1].budget, options(runs[-1]).memory.budget) == (
        "23.54MiB",
        {"as": {"strategy": "der", "exemplars": 2000}},
    )


# --- what is refused --------------------------------------------------------------------------------------------------

TWO = {"replay": method("replay"), "wa": method("wa")}
MISTAKES = {
    "unknown key": ({"method": {}}, ["no 'method'", "did you mean 'methods'?", "protocols"]),
    "nothing to compare": ({"methods": None}, ["'methods' is missing"]),
    "unknown key of a method": (
        {"methods": {"wa": {"config": method("wa"), "sett": {}}}},
        ["methods.wa: no 'sett'", "did you mean 'set'?", "except"],
    ),
    "method's file that is not there": (
        {"methods": {"wa": "nowhere.yaml"}},
        ["digits/wa: --config: nowhere.yaml: No such file"],
    ),
    "protocol that is a number": ({"protocols": {"digits": 3}}, ["protocols.digits: a file, a list of files"]),
    "typo in the option of one method": (
        {"methods": {**TWO, "icarl": {"config": method("icarl"), "set": {"strategy.los_form": "softmax"}}}},
        ["digits/icarl: the command line: no option 'strategy.los_form'", "did you mean 'strategy.loss_form'?"],
    ),
    "typo in the option of one cell": (
        {"methods": TWO, "budgets": [50, {"exemplars": 9, "methods": {"wa": {"model.bakbone": "convnet2"}}}]},
        ["digits/exemplars-9/wa/seed0:", "no option 'model.bakbone'", "did you mean 'model.backbone'?"],
    ),
    "wrong type in one cell": (
        {"budgets": [{"exemplars": 50}, {"exemplars": "many"}]},
        ["digits/exemplars-many/replay/seed0: memory.exemplars"],
    ),
    "typo in a budget": (
        {"budgets": [{"exemplar": 50}]},
        ["digits/exemplar-50/replay/seed0:", "no option 'memory.exemplar'", "did you mean 'memory.exemplars'?"],
    ),
    "unit of a budget": ({"budgets": ["160MB"]}, ["digits/160MB/replay/seed0: memory.budget", "'MB'", "MiB"]),
    "strategy that a budget names": (
        {"budgets": [50, {"name": "as DRE", "budget": {"as": {"strategy": "dre", "exemplars": 20}}}]},
        ["digits/as DRE/replay/seed0: memory.budget.as: strategies: no 'dre'", "did you mean 'der'?"],
    ),
    "option of the strategy that a budget names": (
        {"budgets": {"as DER": {"budget": {"as": {"strategy": "der", "exemplars": 9, "init_args": {"auxiliry": 0}}}}}},
        ["digits/as DER/replay/seed0: memory.budget.as.init_args: DER refused them", "'auxiliry'"],
    ),
    "backbone of the strategy that a budget names": (
        {"budgets": {"as DER": {"budget": {"as": {"strategy": "der", "exemplars": 9, "backbone": "convnet3"}}}}},
        ["digits/as DER/replay/seed0: memory.budget.as: model.backbone: no 'convnet3'", "did you mean 'convnet"],
    ),
    "negative budget": ({"budgets": [{"exemplars": -5}]}, ["memory.exemplars: -5"]),
    "two sizes": ({"budgets": [{"exemplars": 5, "per_class": 5}]}, ["exemplars is 5, per_class is 5"]),
    "budgets of one name": ({"budgets": [50, "50"]}, ["budgets: two are called '50'"]),
    "unknown method of a cell": (
        {"budgets": [{"exemplars": 5, "methods": {"repaly": {}}}]},
        ["methods: no 'repaly'", "did you mean 'replay'?"],
    ),
    "unknown budget of a method": (
        {"methods": {"wa": {"config": method("wa"), "budgets": ["exemplars-5"]}}},
        ["methods.wa.budgets: no 'exemplars-5'", "did you mean 'exemplars-50'?"],
    ),
    "typo in a protocol": (
        {"methods": {"wa": {"config": method("wa"), "protocols": ["digit"]}}},
        ["methods.wa.protocols: no 'digit'", "did you mean 'digits'?"],
    ),
    "cell of a method that runs once": (
        {
            "methods": {"finetune": method("finetune")},
            "budgets": [{"exemplars": 5, "methods": {"finetune": {"trainer.lr": 1}}}],
        },
        ["methods.finetune.set"],
    ),
    "every method excluded": (
        {"methods": {"wa": {"config": method("wa"), "except": ["exemplars-50"]}}},
        ["nothing to run"],
    ),
    "one folder for two": ({"methods": {"a b": method("wa"), "a_b": method("wa")}}, ["a_b/seed0", "share the folder"]),
    "a budget's name that the sweep gives, too": (
        {
            "methods": {"finetune": method("finetune")},
            "budgets": [{"name": "exemplars-0", "budget": "1MiB"}, {"exemplars": 5}],
        },
        ["exemplars-0/finetune/seed0", "share the folder"],
    ),
    "one seed twice": ({"seeds": [1, 2, 1]}, ["seeds: [1, 2, 1]"]),
    "seeds that are a number": ({"seeds": 3}, ["seeds: a list of whole numbers, not 3"]),
    "no workers": ({"workers": 0}, ["workers: 0 must be"]),
    "what the sweep sets itself": ({"set": {"run_dir": "here"}}, ["set: a sweep sets 'run_dir' itself"]),
    "options that are no mapping": ({"set": ["trainer.lr"]}, ["set: must hold keys and values"]),
}


@pytest.mark.parametrize(("changes", "told"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_stops_the_sweep_before_anything_runs(changes, told, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        config.main(tool.main, ["--config", write(tmp_path, **changes)])
    told_so = capsys.readouterr().err
    assert stop.value.code == 2
    for words in told:
        assert words in told_so
    assert told_so.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


@pytest.mark.parametrize(
    "words", [[], ["--config", "a.yaml", "--worker", "2"], ["--config", "a.yaml", "--workers", "x"]]
)
def test_a_mistake_on_the_command_line_is_one_paragraph_with_the_usage(words):
    with pytest.raises(UserError, match=r"\. usage: sweep\.py .*--config CONFIG.*--dry-run") as told:
        tool.main(words)
    assert "\n" not in str(told.value)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("out: runs\nmethods:\n  wa: a.yaml\n  wa: b.yaml\n")
    with pytest.raises(UserError, match=r"'wa' stands twice.*line 4"):
        sweeps.read(str(path))
    with pytest.raises(UserError, match=r"nowhere.yaml: No such file"):
        sweeps.read("nowhere.yaml")


def test_a_folder_of_another_configuration_is_refused(tmp_path, capsys):
    path = write(tmp_path)
    (run,) = sweeps.expand(sweeps.read(path))
    run.folder.path.mkdir(parents=True)
    before = {**run.config, "trainer": {**run.config["trainer"], "lr": 7.0}}
    (run.folder.path / "config.yaml").write_text(yaml.safe_dump(before))
    with pytest.raises(UserError, match=r"digits/exemplars-50/replay/seed0: .*trainer.lr was 7.0, is 0.05"):
        tool.main(["--config", path])


# --- processes, with a program that only pretends to learn ------------------------------------------------------------

PRETENCE = """
import json, os, pathlib, signal, sys, time
of = dict(zip(sys.argv, sys.argv[1:]))
folder, seed = pathlib.Path(of["--run_dir"]), int(of["--seed"])
print("seed", seed, "with", os.environ["OMP_NUM_THREADS"], "threads")
{body}
scores = {{"linear": {{"average_incremental_accuracy": 0.25 * (1 + seed)}}}}
of_tasks = {{"scenario": {{"task_sizes": [2, 2]}}, "tasks": [{{}}]}}
content = {{"status": "complete", "evaluator": "linear", "metrics": scores, **of_tasks}}
(folder / "results.json").write_text(json.dumps(content))
"""


class Pretence:
    """Runs a sweep over seeds with a program in place of ``tools/train.py``, and keeps what was shown."""

    def __init__(self, folder, seeds, **changes):
        self.path = write(folder, seeds=seeds, **changes)
        self.program = folder / "program.py"
        self.runs = sweeps.expand(sweeps.read(self.path))
        self.shown, self.terminal = "", False

    def __call__(self, body="", **more):
        self.program.write_text(PRETENCE.format(body=body))
        shown = io.StringIO()
        console = Console(file=shown, width=200, force_terminal=self.terminal)
        status = sweeps.sweep(self.path, start=[str(self.program)], console=console, **more)
        self.shown = shown.getvalue()
        return status

    def log(self, index):
        return (self.runs[index].folder.path / "log.txt").read_text()


def test_a_failure_stops_no_other_run_and_is_tried_again(tmp_path):
    sweep = Pretence(tmp_path, [0, 1, 2], set={"trainer.epochs": 1, "trainer.lr": 1e30}, threads=3)
    # The run of seed 1 is a true one, which diverges.
    real = f"if seed == 1: os.execv(sys.executable, [sys.executable, {str(ROOT / 'tools/train.py')!r}, *sys.argv[1:]])"
    assert sweep(real, workers=1) == 1
    assert "3 runs: 0 done, 0 to resume, 3 to run; 1 at a time" in sweep.shown
    assert "done  digits/exemplars-50/replay/seed2" in sweep.shown
    assert "2 of 3" in sweep.shown
    assert " 50.0 " in sweep.shown  # the mean of 25 and 75
    name = "digits/exemplars-50/replay/seed1"
    assert f"{name} failed: exit status 1; its log is {sweep.runs[1].folder.path / 'log.txt'}" in sweep.shown
    assert "trainer.lr" in sweep.shown.split(f"{name} failed")[1]  # the log's last lines
    assert f"python tools/compare.py {tmp_path / 'out'} --out {tmp_path / 'out/report'}" in sweep.shown
    assert sweep.log(0) == f"$ {sweeps.command(sweep.runs[0])}\nseed 0 with 3 threads\n"
    assert sweep(dry_run=True) == 0
    states = [line[:10].strip() for line in sweep.shown.splitlines() if not line.startswith(" ")]
    assert states == ["done", "to resume", "done", "3 runs: 2"]
    # A finished run is not touched again; the failed one is.
    before = [(run.folder.path / "results.json").stat().st_mtime_ns for run in sweep.runs]
    assert sweep(workers=1) == 0
    after = [(run.folder.path / "results.json").stat().st_mtime_ns for run in sweep.runs]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    assert [sweep.log(index).count("$ python") for index in range(3)] == [1, 2, 1]
    assert "start digits/exemplars-50/replay/seed1, which goes on" in sweep.shown


def test_a_process_that_leaves_no_results_has_failed(tmp_path):
    sweep = Pretence(tmp_path, [0, 1])
    assert sweep("if seed == 0: sys.exit(0)\nos.kill(os.getpid(), signal.SIGKILL)") == 1
    assert "seed0 failed: exit status 0" in sweep.shown
    assert "seed1 failed: killed by SIGKILL" in sweep.shown
    assert "2 of 2 runs failed" in sweep.shown


def test_so_many_processes_run_at_a_time(tmp_path):
    sweep = Pretence(tmp_path, [0, 1, 2, 3, 4], workers=2)
    busy = tmp_path / "busy"
    busy.mkdir()
    assert (
        sweep(
            f"mine = pathlib.Path({str(busy)!r}) / str(seed)\nmine.touch(); time.sleep(0.3)\n"
            "print('beside', len(list(mine.parent.iterdir()))); mine.unlink()"
        )
        == 0
    )
    beside = [int(sweep.log(index).split()[-1]) for index in range(5)]
    assert max(beside) == 2


def test_a_terminal_shows_what_runs_and_how_far_it_is(tmp_path):
    sweep = Pretence(tmp_path, [0, 1], workers=1)
    sweep.terminal = True
    running = 'json.dumps({"status": "running", "scenario": {"task_sizes": [2, 2, 2]}, "tasks": [{}, {}]})'
    assert (
        sweep(f'(folder / "results.json").write_text({running})\ntime.sleep(1)\nif seed == 0: sys.exit("no luck")') == 1
    )
    shown = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", sweep.shown)
    assert re.search(r"digits/exemplars-50/replay/seed1 \S+ 2/3", shown)
    assert re.search(r"runs, 1 failed +\S+ 0/2", shown)
    assert "FAILED digits/exemplars-50/replay/seed0: exit status 1" in shown
    assert "start " not in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_processes_and_says_how_to_go_on(tmp_path, number, request):
    former = signal.signal(number, signal.default_int_handler)  # the tests may have been started with Ctrl-C ignored
    request.addfinalizer(lambda: signal.signal(number, former))
    sweep = Pretence(tmp_path, [0, 1, 2], workers=2)
    before = signal.getsignal(number)
    status = sweep(f"if seed == 1: time.sleep(0.5); os.kill(os.getppid(), {int(number)})\ntime.sleep(60)")
    assert status == 128 + number
    assert "interrupted, 2 runs stopped; the same command goes on with them" in sweep.shown
    assert not processes(tmp_path)
    assert signal.getsignal(number) is before
    assert sweep() == 0
    assert [sweep.log(index).count("$ python") for index in range(3)] == [2, 2, 1]


def test_a_run_that_another_process_holds_is_waited_for(tmp_path):
    sweep = Pretence(tmp_path, [0, 1], workers=1)
    with contextlib.ExitStack() as stack:
        stack.enter_context(sweep.runs[0].folder.open(yaml.safe_dump(sweep.runs[0].config), overwrite=False))
        assert sweep(dry_run=True) == 0
        assert f"seed0, in use by process {os.getpid()}" in sweep.shown
        release = threading.Timer(2.0, stack.close)
        release.start()
        assert sweep() == 0
        release.join()
    assert f"seed0 is in use by process {os.getpid()}; waiting for it" in sweep.shown
    order = [line for line in sweep.shown.splitlines() if line.startswith(("start", "done"))]
    assert ["seed1" in line for line in order] == [True, True, False, False]


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_held_by_one_process(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.open("seed: 0\n", overwrite=False):
        assert folder.holder() == f"process {os.getpid()}"
        for overwrite in (False, True):
            with (
                pytest.raises(UserError, match=rf"run_dir: .*run is in use by process {os.getpid()}$"),
                RunFolder(tmp_path / "run").open("seed: 1\n", overwrite=overwrite),
            ):
                pass
        assert (tmp_path / "run/config.yaml").read_text() == "seed: 0\n"
    assert folder.holder() is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    with folder.open("seed: 1\n", overwrite=False), contextlib.suppress(RuntimeError):
        raise RuntimeError
    assert folder.holder() is None


def test_a_lock_and_a_log_do_not_make_a_folder_used(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / ".lock").write_text("123\n")  # of a process that was killed
    (tmp_path / "log.txt").write_text("what was said\n")
    assert folder.holder() is None
    folder.check({"seed": 0}, resume=False, overwrite=False)
    with folder.open("seed: 0\n", overwrite=True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "log.txt"]


def test_a_lock_goes_with_its_process(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from cil.report.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).open('seed: 0', overwrite=False): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        folder = RunFolder(tmp_path)
        assert folder.holder() == f"process {process.pid}"
        process.kill()
    assert folder.holder() is None
    with folder.open("seed: 1", overwrite=False):
        assert (tmp_path / "config.yaml").read_text() == "seed: 1"


# --- killed -----------------------------------------------------------------------------------------------------------


def processes(out):
    """Numbers of the processes whose command line names this folder, other than sweeps."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if any(str(out).encode() in word for word in words) and b"--run_dir" in words:
                found.append(int(path.parent.name))
    return found


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the processes of a killed sweep")
def test_killed_twice_a_sweep_ends_with_the_results_of_one_that_was_not(tmp_path):
    digits = load("digits")
    images = {"x_train": digits.train.raw(slice(0, None, 4)), "x_test": digits.test.raw()}
    labels = {"y_train": digits.train.labels[::4], "y_test": digits.test.labels}
    # A process opens this faster than it imports scikit-learn.
    np.savez(tmp_path / "digits.npz", **images, **labels, classes=np.array(list("0123456789")))
    asked = {
        "methods": TWO,
        "budgets": [{"exemplars": 20}],
        "seeds": [0, 1, 2],
        "set": {"data": f"npz:{tmp_path / 'digits.npz'}", "trainer.epochs": 4, "checkpoint_every": 1, "threads": 1},
        "workers": 2,
    }
    whole = expand(tmp_path, **asked, out="whole")
    parts = expand(tmp_path, **asked)
    path, out = str(tmp_path / "sweep.yaml"), tmp_path / "out"
    words = [sys.executable, str(ROOT / "tools/sweep.py"), "--config", path]
    seed = int.from_bytes(os.urandom(4), "little")
    draw = random.Random(seed)
    log = tmp_path / "shown.txt"

    def complete():
        return sum(run.results() is not None for run in parts)

    def ripe(before):
        assert process.poll() is None, f"it ended before it was killed: {log.read_text()}"
        # A run holds its folder from the moment at which it starts to learn.
        return complete() >= before and any(run.folder.holder() for run in parts)

    for before in (0, 2):  # runs that are complete when it is killed
        with open(log, "ab") as shown:
            process = subprocess.Popen(words, cwd=ROOT, stdout=shown, stderr=subprocess.STDOUT)
        until(lambda n=before: ripe(n), 900)
        time.sleep(draw.uniform(0, 1))
        assert processes(out), f"nothing ran when it was killed (seed {seed})"
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        until(lambda: not processes(out), 10)
        assert complete() < len(parts)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 done" not in done.stdout.splitlines()[0]
    for alone, run in zip(whole, parts, strict=True):
        assert train.main(alone.argv) == 0
        one, two = (json.loads((each.folder.path / "results.json").read_text()) for each in (alone, run))
        for content in (one, two):
            del content["versions"]["commit"]  # of the source, which may be edited while this runs
        assert report.comparable(one) == report.comparable(two), f"{run.name} differs after kills drawn with {seed}"
