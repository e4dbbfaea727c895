"""What a network that trained on coded exemplars makes of the same test images in either format.

    python benchmarks/formats.py runs/A runs/B ...

Exemplars in a lossy format differ from new images by more than their class. For each finished run the test images are
scored twice by its network: as they are, and as the run's codec stores them. Rows are shares in percent; ``old`` are
test images of all classes but the last task's, ``taken for new`` those predicted as a class of the last task.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cil.data.images import ImageSet
from cil.deploy.finished import reopen
from cil.errors import UserError
from cil.evaluation.accuracy import evaluate
from cil.memory.exemplars import Exemplars
from scenarios.datasets import load


def measure(run_dir: Path) -> list[tuple[str, float, float, float, float]]:
    """Format, accuracy, accuracy on old classes, old images taken for new ones, accuracy on new classes."""
    run = reopen(run_dir, load)
    experiment, last = run.experiment, run.experiment.scenario.tasks[run.task]
    test = experiment.scenario.test.of_classes(range(last.n_seen))
    codec = experiment.memory.make_codec(test.image_shape)
    coded = ImageSet(codec.decode(codec.encode(test.raw())), test.labels)
    none = Exemplars(experiment.memory, test.image_shape)
    out = []
    for name, images in (("as they are", test), (experiment.memory.codec, coded)):
        found = evaluate(run.strategy, images, last.n_seen, none, ("linear",), experiment.place(run.task))
        counts, old = found["linear"].confusion, last.n_old
        right = np.trace(counts), np.trace(counts[:old, :old]), counts[:old, old:].sum(), np.trace(counts[old:, old:])
        of = counts.sum(), counts[:old].sum(), counts[:old].sum(), counts[old:].sum()
        out.append((name, *(100 * float(part / whole) for part, whole in zip(right, of, strict=True))))
    return out


def main() -> None:
    """Print a table of all runs."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    print("| run | test images | all | old | old taken for new | new |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for place in map(Path, sys.argv[1:]):
        try:
            rows = measure(place)
        except UserError as error:
            raise SystemExit(f"error: {error}") from error
        for name, *shares in rows:
            print(f"| {place} | {name} | " + " | ".join(f"{share:.1f}" for share in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
