"""What a run's tasks cost together, and how it is shown."""

import copy
import io
import json
import statistics

import pytest
from rich.console import Console

from cil.compare.page import page
from cil.errors import UserError
from cil.machine.compute import PHASES
from cil.report import costs
from cil.report.folder import RunFolder
from tests.result_files import result
from tests.test_comparison import compared, seeds
from tools import profile


def compute(scale: int, *, forward=10, process=100, device=None):
    """The costs of a task, as results.json has them."""
    return {
        "seconds": {phase: float(scale * (number + 1)) for number, phase in enumerate(PHASES)},
        "images": 30 * scale,
        "training_flops": 1e12 * scale,
        "forward_flops": forward,
        "peak_bytes": {"process": process, "device": device},
    }


def told(content, **options):
    """The same result with costs, those of task t being t + 1 times as high."""
    content = copy.deepcopy(content)
    for t, task in enumerate(content["tasks"]):
        task["compute"] = compute(t + 1, **{key: values[t] for key, values in options.items()})
    return content


def test_costs_of_tasks_add_up_and_peaks_do_not():
    tasks = told(result(), forward=[10, 20, None], process=[5, 9, 7], device=[None, 3, 2])["tasks"]
    whole = costs.of_tasks(tasks)
    assert whole.seconds == {phase: 6.0 * (number + 1) for number, phase in enumerate(PHASES)}
    assert (whole.total, whole.images, whole.training_flops) == (6 * 21, 180, 6e12)
    assert (whole.forward_flops, whole.process_bytes, whole.device_bytes) == (20, 9, 3)
    assert whole.images_per_second == 180 / (6 * 1 + 6 * 2)  # data and learning


def test_what_older_files_do_not_tell_is_not_made_up():
    tasks = told(result())["tasks"]
    del tasks[1]["compute"]
    assert costs.of_tasks(tasks) is None
    assert costs.of_tasks([]) is None
    with pytest.raises(UserError, match="run it again"):
        costs.profile({**result(), "tasks": tasks}, "old")
    with pytest.raises(UserError, match="no task is done yet"):
        costs.profile({**result(), "tasks": []}, "young")


def test_without_gradient_steps_there_is_no_rate():
    tasks = told(result())["tasks"]
    for task in tasks:
        task["compute"]["images"] = 0
    assert costs.of_tasks(tasks).images_per_second is None


def shown(content):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(costs.profile(content, "runs/one"))
    return [line.split() for line in console.export_text().splitlines()]


def test_a_profile_has_a_line_for_each_task_and_the_largest_share_first():
    content = told(result(), process=[2**20, 3 * 2**20, 2**20])
    content["machine"] = {"name": "Some CPU", "device": "cpu", "threads": 2, "precision": "32", "processes": 1}
    lines = shown(content)
    assert ["2", "2.0", "4.0", "6.0", "8.0", "10.0", "12.0", "42.0", "10", "2", "333", "3"] in lines
    assert ["all", "6.0", "12.0", "18.0", "24.0", "30.0", "36.0", "126.0", "10", "6", "333", "3"] in lines
    bars = [line for line in lines if line and line[0] in PHASES]
    assert [line[0] for line in bars] == list(reversed(PHASES))
    assert bars[0][1:3] == ["28.6", "%"]  # 36 of 126 seconds


def test_a_stream_is_profiled_by_phase():
    content = told(result())
    content["machine"] = {"name": "Some CPU", "device": "cpu", "threads": 2, "precision": "32", "processes": 1}
    content["stream"] = {"phases": [0, 0, 1]}
    lines = shown(content)
    assert ["1", "3.0"] in [line[:2] for line in lines]
    assert ["2", "3.0"] in [line[:2] for line in lines]
    assert ["3", "3.0"] not in [line[:2] for line in lines]


def test_the_tool_reads_run_folders(tmp_path, capsys):
    content = told(result())
    content["machine"] = {"name": "Some CPU", "device": "cpu", "threads": 2, "precision": "32", "processes": 1}
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with pytest.raises(UserError, match=r"there is no results\.json"):
        profile.main([str(folder.path)])
    (folder.path / "results.json").write_text(json.dumps(content))
    assert profile.main([str(folder.path)]) == 0
    assert "learning" in capsys.readouterr().out


def test_a_comparison_shows_the_mean_over_seeds(tmp_path):
    one, other = seeds(2)
    both = compared(tmp_path / "both", told(one), told(other, process=[300, 400, 500]))
    found = both.rows[0].costs
    assert found["learning"] == 12.0
    assert found["process_bytes"] == statistics.mean([100, 500])
    assert found["device_bytes"] is None
    text = page(both, [])
    assert 'id="costs-0"' in text and "TFLOP" in text and "GPU peak" not in text
    older = compared(tmp_path / "older", told(one), other)
    assert older.rows[0].costs is None
    assert "do not tell where their time went" in page(older, [])
