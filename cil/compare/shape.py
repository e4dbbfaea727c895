"""What a complete result file must hold to be compared: keys, types and ranges, declared in one place.

The meaning of each key is in ``docs/results_schema.md``. Keys that are not named here are not looked at and may hold
anything, so files of earlier versions, which lack some, and of later ones, which add others, are read as well.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from cil.machine.compute import PHASES

TOLD = 3  # faults of one file that are named
# Where a result file's reader has another word than the validator.
WORDS = {"missing": "is missing", "model_type": "should be an object", "dict_type": "should be an object"}

Count = Annotated[int, Field(ge=0, lt=2**63)]
Bytes = Annotated[int, Field(gt=-(2**63), lt=2**63)]  # negative ones are for the checks of fairness to find
Seed = Annotated[int, Field(gt=-(2**63), lt=2**64)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]
Number = Annotated[float, Field(ge=0, le=1e30)]  # so that sums and squares are finite


class Part(BaseModel):
    """An object of a result file: no text in place of a number, no NaN, no infinity."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Strategy(Part):
    """The strategy's options."""

    init_args: dict[str, Any] | None = None


class Memory(Part):
    """What decides how much a run may keep."""

    exemplars: Count | Literal["all"] | None = None
    per_class: Count | None = None
    codec: str | None = None


class Config(Part):
    """The resolved options; all others are compared as they are."""

    strategy: Strategy | None = None
    memory: Memory


class Seeds(Part):
    """What runs are paired by."""

    init: Seed
    data: Seed
    exemplars: Seed


class Scenario(Part):
    """The tasks."""

    name: str
    family: str | None = None
    task_sizes: Annotated[list[Count], Field(min_length=1)]
    class_names: list[str] | None = None


class Budget(Part):
    """A memory that was stated in bytes."""

    bytes: Count
    convention: Literal["strict", "paper"] = "strict"
    align: Literal["final", "always"] = "final"


class Metrics(Part):
    """The numbers of one evaluator."""

    average_incremental_accuracy: Fraction | None
    last_accuracy: Fraction | None
    forgetting: Difference | None
    seen_accuracy: list[Fraction | None]
    new_task_accuracy: Fraction | None = None


class FewShotMetrics(Part):
    """The numbers of one evaluator in few-shot sessions; lists have an entry for each task."""

    base_accuracy: Annotated[list[Fraction | None], Field(min_length=1)]
    new_accuracy: Annotated[list[Fraction | None], Field(min_length=1)]
    harmonic_mean: Annotated[list[Fraction | None], Field(min_length=1)]
    performance_drop: Difference | None


class FewShot(Part):
    """Few-shot sessions."""

    metrics: dict[str, FewShotMetrics]


class Stream(Part):
    """A stream without boundaries."""

    phases: list[Count]
    images_seen: list[Count] | None = None
    metrics: dict[str, dict[str, Difference | None]] = {}


class Carried(Part):
    """The bytes after a task; those of categories stand beside the totals."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Bytes]

    strict: Bytes
    paper: Bytes
    exemplars: Bytes


class Peaks(Part):
    """The most memory."""

    process: Count | None
    device: Count | None


def _every_phase(seconds: dict[str, float]) -> dict[str, float]:
    if missing := [phase for phase in PHASES if phase not in seconds]:
        raise ValueError(f"is without {', '.join(missing)}")
    return seconds


class Compute(Part):
    """What a task cost."""

    seconds: Annotated[dict[str, Number], AfterValidator(_every_phase)]
    images: Count
    training_flops: Number
    forward_flops: Number | None
    peak_bytes: Peaks


class Task(Part):
    """What one task left."""

    n_seen: Count
    train_images: Count
    exemplars: Count
    seconds: Number
    bytes: Carried
    training_bytes: dict[str, Count] | None = None
    inference_bytes: Count | None = None
    compute: Compute | None = None


class Result(Part):
    """A complete result file."""

    command: str
    config: Config
    seeds: Seeds
    versions: dict[str, str | None]
    machine: dict[str, Any]
    fingerprint: str
    scenario: Scenario
    strategy: str
    evaluator: str
    name: str | None = None
    exemplar_free: bool = False
    out_of_budget: bool
    budget: Budget | None = None
    selected_by: str | None = None
    pretrained_classes: list[str] | None = None
    pretrained_stream: list[str] | None = None
    metrics: dict[str, Metrics]
    per_class_accuracy: dict[str, list[Fraction | None]] = {}
    task_confusion: dict[str, list[list[Fraction | None]]]
    stream: Stream | None = None
    few_shot: FewShot | None = None
    tasks: list[Task]

    @model_validator(mode="after")
    def fits_together(self) -> Result:
        """The parts speak of the same tasks and the same evaluators."""
        wanted, done = len(self.scenario.task_sizes), len(self.tasks)
        if wanted != done:
            raise ValueError(f"complete, but with {done} of {wanted} tasks")
        if self.evaluator not in self.metrics:
            raise ValueError(f"metrics are without {self.evaluator}, the evaluator")
        for name, scores in self.metrics.items():
            confusion = self.task_confusion.get(name)
            if len(scores.seen_accuracy) != done:
                raise ValueError(f"metrics.{name}.seen_accuracy has {len(scores.seen_accuracy)} of {done} tasks")
            if not confusion or {len(row) for row in confusion} != {len(confusion)}:
                raise ValueError(f"task_confusion.{name} is not square")
            if self.few_shot and name not in self.few_shot.metrics:
                raise ValueError(f"few_shot.metrics are without {name}")
        if self.stream:
            for key, pieces in (("phases", self.stream.phases), ("images_seen", self.stream.images_seen)):
                if pieces is not None and len(pieces) != done:
                    raise ValueError(f"stream.{key} has {len(pieces)} of {done} pieces")
        return self


KEYS = frozenset(name for name, field in Result.model_fields.items() if field.is_required())


def fault(content: dict[str, Any]) -> str | None:
    """What keeps the content of a complete result file from being compared, in words; None if nothing does."""
    try:
        Result.model_validate(content)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
    else:
        return None
    told = []
    for one in faults:
        place = ".".join(map(str, one["loc"]))
        what = WORDS.get(one["type"], one["msg"].removeprefix("Value error, ").removeprefix("Input "))
        told.append(f"{place} {what}".strip())
    return "; ".join(told[:TOLD]) + "; ..." * (len(told) > TOLD)
