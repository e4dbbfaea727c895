"""Result files for tests: a real one from ``results/``, cut to few tasks and given other names, numbers and bytes."""

from __future__ import annotations

import copy
import functools
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SEEN = (0.8, 0.6, 0.4)
IMAGE = 3072
LABEL = 4


@functools.cache
def published(name: str = "cifar100_b0_10_short") -> dict[str, str]:
    """The published results of a folder as they are packed: file -> content as JSON."""
    with lzma.open(ROOT / "results" / name / "runs.jsonl.xz") as file:
        lines = [json.loads(line) for line in file]
    return {line["file"]: json.dumps(line["results"]) for line in lines}


def real(name: str = "wa-seed0.json") -> dict[str, Any]:
    """A published result, to be changed at will."""
    return json.loads(published()[name])


def result(
    name: str = "WA",
    seed: int = 0,
    *,
    seen: Sequence[float] = SEEN,
    exemplars: int = 20,
    backbone: Sequence[int] | int = 40_000,
    budget: int | None = None,
    convention: str = "strict",
    align: str = "final",
    change: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A complete result of one scenario whose tasks bring two classes each.

    Args:
        name: of the class; the label, unless ``change`` sets ``name``.
        seed: all three.
        seen: accuracy on all classes seen after each task; average and last accuracy follow, forgetting is a tenth of
            the last.
        exemplars: kept after every task, each of 3072 bytes and a label of 4.
        backbone: bytes of float32 backbone parameters, for all tasks or for each. The head has 100 bytes a class, the
            normalisation 500 bytes; there are no statistics.
        budget: stated bytes, with ``convention`` and ``align``.
        change: values by dotted key; None removes the key.
    """
    content = copy.deepcopy(real())
    n = len(seen)
    growth = [backbone] * n if isinstance(backbone, int) else list(backbone)
    content["strategy"] = f"strategies.{name.lower()}.{name}"
    content["config"]["strategy"] = {"class_path": content["strategy"], "init_args": {"temperature": 2.0}}
    content["config"] |= {"seed": seed, "run_dir": f"runs/{name}-{seed}"}
    content["config"]["memory"] = {"exemplars": exemplars, "per_class": None, "selection": "herding"}
    content["seeds"] |= {"init": seed, "data": seed, "exemplars": seed}
    if budget is not None:
        content["budget"] = {"bytes": budget, "text": "some", "align": align, "convention": convention}
    content["scenario"]["task_sizes"] = [2] * n
    for key in ("class_order", "class_names"):
        content["scenario"][key] = content["scenario"][key][: 2 * n]
    scores = {
        "average_incremental_accuracy": sum(seen) / n,
        "last_accuracy": seen[-1],
        "forgetting": seen[-1] / 10,
        "backward_transfer": -seen[-1] / 10,
        "new_task_accuracy": seen[0],
        "seen_accuracy": list(seen),
        "top5_last": 1.0,
        "task_inference_last": 0.5,
        "within_task_last": 0.5,
    }
    content["metrics"] = {"linear": scores}
    content["accuracy"] = {"linear": [[None] * n for _ in range(n)]}
    wrong = (1 - seen[-1]) / max(n - 1, 1)
    content["task_confusion"] = {"linear": [[seen[-1] if i == j else wrong for j in range(n)] for i in range(n)]}
    content["per_class_accuracy"] = {"linear": [seen[-1]] * 2 * n}
    content["tasks"] = [_task(t, exemplars, growth[t]) for t in range(n)]
    content["command"] = f"python tools/train.py --strategy {name} --seed {seed}"
    for key, value in (change or {}).items():
        put(content, key, value)
    return content


def _task(t: int, exemplars: int, backbone: int) -> dict[str, Any]:
    parts = {"backbone": backbone, "head": 200 * (t + 1), "normalisation": 500, "statistics": 0}
    kept = {"exemplars": IMAGE * exemplars, "labels": LABEL * exemplars, "lengths": 0}
    network = {"parameters": backbone + 200 * (t + 1), "buffers": 500}
    totals = {"strict": sum(parts.values()) + sum(kept.values()), "paper": backbone + kept["exemplars"]}
    return {
        **{"task": t, "classes": [2 * t, 2 * t + 1], "n_seen": 2 * t + 2, "train_images": 1000, "seconds": 10.0 + t},
        **{"images_per_second": 100.0, "exemplars": exemplars, "top5": {"linear": 1.0}},
        "bytes": {**network, **parts, **kept, **totals},
    }


def put(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a value by its dotted key (numbers index lists); None removes it."""
    place: Any = content
    *path, last = key.split(".")
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    if value is None:
        place.pop(last, None)
    else:
        place[int(last) if isinstance(place, list) else last] = value


def write(folder: Path, *contents: dict[str, Any]) -> list[str]:
    """A run folder with results.json for each; their paths."""
    places = []
    for content in contents:
        place = folder / f"run{len(list(folder.glob('run*')))}"
        place.mkdir(parents=True)
        (place / "results.json").write_text(json.dumps(content))
        places.append(str(place))
    return places
