"""Each check of fairness: files in which it finds something, and files in which it does not."""

from __future__ import annotations

import pytest

from cil.compare import fairness
from cil.compare.comparison import compare
from tests.result_files import IMAGE, LABEL, put, result, write

BACKBONE = 40_000
# What ``result`` carries at the end with 20 exemplars.
STRICT = BACKBONE + 600 + 500 + 20 * (IMAGE + LABEL)
UPPER_BOUND = {"out_of_budget": True, "config.memory.exemplars": "all"}


FAMILY = {"scenario.family": "e" * 64}


def pair(a=None, b=None, **options):
    """Two methods with two seeds each, and with changes to one or the other."""
    return [
        *(result("A", seed, change=a, **options) for seed in (0, 1)),
        *(result("B", seed, change=b, **options) for seed in (0, 1)),
    ]


def method(name, seeds=(0, 1), **options):
    return [result(name, seed, **options) for seed in seeds]


def drawn(name, seeds, **options):
    """Runs whose seed draws the tasks: a fingerprint for each, and one family."""
    return [
        result(name, seed, change={**FAMILY, "fingerprint": str(seed) * 64, "scenario.name": "blurry"}, **options)
        for seed in seeds
    ]


def grown(name, **options):
    return method(name, backbone=(BACKBONE // 4, BACKBONE // 2, BACKBONE), **options)


def parts_missing(content):
    content["tasks"][1]["bytes"]["strict"] += 12
    return content


def exceeded(peak):
    """A budget that holds at the end and, after the second task, is exceeded by some bytes."""
    content = result("A", budget=STRICT, align="always")
    middle = content["tasks"][1]["bytes"]
    middle["statistics"] += peak + 200
    middle["strict"] += peak + 200  # the head is smaller by one task, 200 bytes
    return content


OTHER = {"fingerprint": "f" * 64}
PRETRAINED = {"pretrained_classes": ["zebra", "quagga"]}
# id: (level, files that it is found in, words of the sentence, files that it is not found in)
CASES = {
    "different-fingerprints": (
        "problem",
        [*method("A"), *method("B", change={**OTHER, "config.image_size": 32, "config.train_per_class": 250})],
        ["cifar100 B0 Inc10", "image size and training images of a class", "A on c35388b1", "B on ffffffff"],
        # every method on both orders of classes is a comparison for each of them
        [*pair(), *pair(OTHER, OTHER)],
    ),
    "several-scenarios": (
        "note",
        [*pair(), *pair({**OTHER, "scenario.name": "other"}, {**OTHER, "scenario.name": "other"})],
        ["2 scenarios", "other (ffffffff)"],
        pair(),
    ),
    "budget-not-met": (
        "problem",
        method("A", budget=STRICT + 6 * (IMAGE + LABEL) + 1),
        ["A, 0.12 MiB strict", "carries 0.098 MiB", "budget says 0.115", "too little"],
        pair(budget=STRICT + 6 * (IMAGE + LABEL)),  # one image for each of six classes
    ),
    "unspent-memory": (
        "note",
        method("A", budget=STRICT + 2 * (IMAGE + LABEL) + 1),
        ["Every class gets as many", "A, 0.10 MiB strict: 2 images, 0.006 MiB."],
        [*method("A", budget=STRICT + IMAGE + LABEL - 1), *method("B", budget=2 * STRICT)],
    ),
    "budget-exceeded": (
        "problem",
        [exceeded(6 * (IMAGE + LABEL) + 1), result("A", 1, budget=STRICT, align="always")],
        ["run0/results.json", "carries up to 0.115 MiB", "0.098 MiB are allowed"],
        [exceeded(6 * (IMAGE + LABEL)), *method("B", budget=STRICT)],
    ),
    "different-budget-conventions": (
        "problem",
        [*method("A", budget=STRICT), *method("B", budget=STRICT, convention="paper")],
        ["0.10 MiB strict", "0.10 MiB paper", "A", "B"],
        [*method("A", budget=STRICT), *method("B", budget=2 * STRICT, convention="paper")],
    ),
    "nearly-equal-budgets": (
        "note",
        [*method("A", budget=STRICT), *method("B", budget=STRICT + 200)],
        [f"{STRICT} bytes: A", f"{STRICT + 200} bytes: B"],
        [*method("A", budget=STRICT), *method("B", budget=STRICT)],
    ),
    "unequal-memory": (
        "problem",
        [*method("A"), *method("B", backbone=BACKBONE + IMAGE + LABEL + 1)],
        ["With 20 exemplars each", "A carries 0.098 MiB", "B 0.101 MiB"],
        [*method("A"), *method("B", backbone=BACKBONE + IMAGE + LABEL), *method("C", exemplars=300)],
    ),
    "different-memory-ranges": (
        "note",
        [*method("A"), *method("A", exemplars=40), *method("B"), *method("B", exemplars=60)],
        ["A 0.10 to 0.16 MiB", "B 0.10 to 0.22 MiB"],
        [*method("A"), *method("A", exemplars=40), *method("B"), *method("B", exemplars=40)],
    ),
    "repeated-memory": (
        "note",
        [*method("A"), *method("A", change={"config.memory.per_class": 3})],
        ["A has two points at one memory"],
        [*method("A"), *method("A", exemplars=40)],
    ),
    "exemplars-in-exemplar-free": (
        "problem",
        [result("A", change={"exemplar_free": True}), result("A", 1), *method("B")],
        ["run0/results.json", "A, 20 exemplars", "keeps 20 exemplars"],
        [*method("A", exemplars=0, change={"exemplar_free": True}), *method("B")],
    ),
    "bytes-do-not-add-up": (
        "problem",
        [parts_missing(result("A")), result("A", 1)],
        ["run0/results.json", "12 apart"],
        pair(),
    ),
    "different-epochs": (
        "problem",
        pair({"config.trainer.epochs": 170}),
        ["trainer.epochs", "170 in A", "5 in B"],
        pair({"config.trainer.epochs": 170}, {"config.trainer.epochs": 170}),
    ),
    "different-lr": ("problem", pair({"config.trainer.lr": 0.5}), ["0.5 in A", "0.1 in B"], pair()),
    "different-batch-size": ("problem", pair({"config.trainer.batch_size": 64}), ["64 in A", "32 in B"], pair()),
    "different-optimizer": ("problem", pair({"config.trainer.optimizer": "adamw"}), ["adamw in A"], pair()),
    "different-schedule": ("problem", pair({"config.trainer.schedule": "constant"}), ["constant in A"], pair()),
    "different-weight-decay": ("problem", pair({"config.trainer.weight_decay": 0.1}), ["0.1 in A"], pair()),
    "different-per-task": (
        "problem",
        pair({"config.trainer.per_task": {"0": {"epochs": 200}}}),
        ['{"0": {"epochs": 200}} in A', "- in B"],
        pair(),
    ),
    "different-milestones": (
        "problem",
        pair(
            {"config.trainer.schedule": "multistep", "config.trainer.milestones": [3]},
            {"config.trainer.schedule": "multistep", "config.trainer.milestones": [4]},
        ),
        ["[3] in A", "[4] in B"],
        pair({"config.trainer.milestones": [3]}, {"config.trainer.milestones": [4]}),  # a cosine has none
    ),
    "different-momentum": (
        "problem",
        pair({"config.trainer.momentum": 0.5}),
        ["0.5 in A"],
        pair(
            {"config.trainer.optimizer": "adamw", "config.trainer.momentum": 0.5},
            {"config.trainer.optimizer": "adamw", "config.trainer.momentum": 0.6},
        ),
    ),
    "different-augmentation": (
        "problem",
        pair({"config.augmentation.preset": "none", "config.augmentation.pad": 4}),
        ["augmentation.preset", "none in A", "cifar in B", "augmentation.pad", "4 in A"],
        pair(),
    ),
    "different-image-size": ("problem", pair({"config.image_size": 32}), ["32 in A", "16 in B"], pair()),
    "different-precision": ("problem", pair({"machine.precision": "32"}), ["32 in A", "bf16-mixed in B"], pair()),
    "different-backbones": (
        "problem",
        pair({"config.model.backbone": "convnet2"}),
        ["convnet2 in A", "cifar_resnet32 in B"],
        [
            *grown("A", budget=STRICT, change={"config.model.backbone": "convnet2"}),
            *method("B", budget=STRICT),
        ],
    ),
    "backbone-spent-as-memory": (
        "note",
        [*grown("A", budget=STRICT, change={"config.model.backbone": "convnet2"}), *method("B", budget=STRICT)],
        ["convnet2 in A"],
        [*grown("A", budget=STRICT), *method("B", budget=STRICT)],
    ),
    "different-heads": ("note", pair({"config.model.head": "cosine"}), ["cosine in A", "linear in B"], pair()),
    "different-pretraining": (
        "problem",
        pair(PRETRAINED),
        ["2 classes in A", "no classes in B"],
        pair(PRETRAINED, PRETRAINED),
    ),
    "pretraining-overlap": (
        "problem",
        pair({"pretrained_classes": ["Palm Tree, Arecaceae", "zebra"]}),
        ["A, 20 exemplars", "1 of the stream's classes", "palm_tree"],
        pair({"pretrained_classes": ["zebra", "palm"]}),
    ),
    "test-data-selection": (
        "problem",
        pair({"selected_by": "best epoch on test images"}),
        ["A, 20 exemplars", "'best epoch on test images'"],
        pair({"selected_by": "best epoch on validation images"}),
    ),
    "single-seed": ("problem", [*method("A"), result("B")], ["B, 20 exemplars"], pair()),
    "different-seeds": (
        "note",
        [*method("A"), *method("B", seeds=(1, 2))],
        ["At 20 exemplars", "0, 1 in A", "1, 2 in B"],
        [*method("A"), *method("B"), *method("C", seeds=(1, 2), exemplars=0)],
    ),
    "different-draws": (
        "problem",
        [*drawn("A", seeds=(0, 1)), *drawn("B", seeds=(0, 2))],
        ["At 20 exemplars", "0 on 00000000, 1 on 11111111 in A", "0 on 00000000, 2 on 22222222 in B"],
        [*drawn("A", seeds=(0, 1)), *drawn("B", seeds=(0, 1)), *drawn("C", seeds=(2, 3), exemplars=0)],
    ),
    "repeated-run": (
        "note",
        [*method("A"), result("A")],
        ["run0/results.json and ", "run2/results.json", "and agree"],
        method("A"),
    ),
    "repeated-run-differs": (
        "problem",
        [*method("A"), result("A", seen=(0.8, 0.6, 0.41))],
        ["run2/results.json", "do not agree"],
        [*method("A"), result("A")],
    ),
    "left-out": (
        "note",
        [*method("A"), result("A", 2, change={"status": "running"})],
        ["run2/results.json is left out: status running"],
        [*method("A"), result("A")],
    ),
    "different-versions": (
        "note",
        pair({"versions.torch": "2.4.0"}),
        ["torch", "2.4.0 (2 runs)", "2.15.0 (2 runs)"],
        pair({"versions.torch": "2.4.0"}, {"versions.torch": "2.4.0"}),
    ),
    "different-commits": (
        "note",
        [*method("A"), *method("B", seeds=(0,), change={"versions.commit": "abcdefg"}), result("B", 1)],
        ["dac2897 (3 runs)", "abcdefg (1 run)"],
        pair(),
    ),
    "uncommitted-changes": ("note", pair({"versions.commit": "abc-dirty"}), ["in 2 runs", "run0"], pair()),
    "different-machines": (
        "note",
        pair({"machine.name": "H100", "machine.device": "cuda"}),
        ["H100, cuda, threads 1 (2 runs)", "AMD EPYC, cpu, threads 1 (2 runs)"],
        pair(),
    ),
}


def found(folder, contents):
    return fairness.findings(compare(write(folder, *contents)))


@pytest.mark.parametrize("id", CASES)
def test_a_check_finds_what_it_promises_and_nothing_else(tmp_path, id):
    level, guilty, words, innocent = CASES[id]
    own = [finding for finding in found(tmp_path / "guilty", guilty) if finding.id == id]
    assert [finding.level for finding in own] == [level]
    assert all(word in own[0].text for word in words), own[0].text
    assert own[0].text.endswith(".") and own[0].advice.endswith(".")
    assert id not in [finding.id for finding in found(tmp_path / "innocent", innocent)]


def test_a_fair_comparison_has_no_findings(tmp_path):
    assert found(tmp_path / "a", pair()) == []
    assert found(tmp_path / "b", pair(budget=STRICT)) == []


def test_problems_come_first(tmp_path):
    both = pair({"versions.torch": "2.4.0", "config.trainer.epochs": 9}, {"versions.commit": "abc-dirty"})
    levels = [finding.level for finding in found(tmp_path, both)]
    assert levels == sorted(levels, reverse=True)
    assert {"problem", "note"} == set(levels)


def test_every_check_has_a_promise_and_a_case():
    names = [check.__name__ for check in fairness.CHECKS]
    public = {
        name
        for name, value in vars(fairness).items()
        if callable(value) and value.__module__ == fairness.__name__ and _finds(value)
    }
    assert len(names) == len(set(names))
    assert set(names) == public - {"findings"}
    assert all(check.__doc__ for check in fairness.CHECKS)


def _finds(value):
    """Whether it is a public function that gives findings, as a list or one after the other."""
    returned = getattr(value, "__annotations__", {}).get("return", "")
    return "[Finding]" in returned and not value.__name__.startswith("_")


def test_a_method_that_has_no_image_to_fill_a_budget_with_is_a_note(tmp_path):
    short = [*method("A", budget=STRICT), *method("B", budget=STRICT, exemplars=0)]
    assert [(f.level, f.id) for f in found(tmp_path / "a", short)] == [("note", "budget-not-met")]
    whole = method("A", budget=2 * STRICT)
    for content in whole:
        put(content, "tasks.0.train_images", 20)
        put(content, "tasks.1.train_images", 0)
        put(content, "tasks.2.train_images", 0)
    assert [(f.level, f.id) for f in found(tmp_path / "c", whole)] == [("note", "budget-not-met")]
    above = [*method("A", budget=STRICT), *method("B", budget=STRICT, exemplars=0, backbone=3 * BACKBONE)]
    assert ("problem", "budget-not-met") in [(f.level, f.id) for f in found(tmp_path / "b", above)]


def test_exemplars_that_are_not_kept_are_told_with_their_number(tmp_path):
    """Of 24 exemplars six classes could keep four each; of 23 only three, and five are left over."""
    stated = {"config.memory.exemplars": 23}
    (equal,) = found(tmp_path / "a", method("A", exemplars=18, change=stated))
    assert (equal.id, equal.level) == ("unspent-memory", "note")
    assert equal.text == "Every class gets as many images, which leaves room for at most one more of each: A, 23 " + (
        "exemplars: 5 images."
    )
    (short,) = found(tmp_path / "b", method("A", exemplars=16, change=stated))
    assert "fewer images than their share" in short.text and "7 images" in short.text
    (all_kept,) = found(tmp_path / "c", method("A", exemplars=20, change={**stated, **_few_images(20)}))
    assert "fewer images than their share" in all_kept.text and "3 images" in all_kept.text
    a_class = {"config.memory.exemplars": None, "config.memory.per_class": 4}
    (each,) = found(tmp_path / "d", method("A", change=a_class))
    assert "4 images" in each.text  # of 24
    assert not found(tmp_path / "e", method("A", exemplars=24, change=a_class))


def _few_images(n):
    return {"tasks.0.train_images": n, "tasks.1.train_images": 0, "tasks.2.train_images": 0}


def test_what_is_left_of_a_budget_counts_in_its_own_convention(tmp_path):
    paper = BACKBONE + 20 * IMAGE
    (over,) = found(tmp_path / "a", method("A", budget=paper + 2 * IMAGE, convention="paper"))
    assert "2 images, 0.006 MiB" in over.text
    strict = method("A", budget=STRICT + 2 * IMAGE + LABEL)
    assert "1 image, " in found(tmp_path / "b", strict)[0].text


def test_a_budget_counts_in_its_own_convention(tmp_path):
    paper = BACKBONE + 20 * IMAGE
    assert found(tmp_path / "a", pair(budget=paper, convention="paper")) == []
    # 40 bytes of labels and head a row would not matter, 40,000 of statistics do in strict bytes alone
    heavy = pair(budget=paper, convention="paper")
    for content in heavy:
        for task in content["tasks"]:
            task["bytes"]["statistics"] += 40_000
            task["bytes"]["strict"] += 40_000
    assert found(tmp_path / "b", heavy) == []
    strict = pair(budget=STRICT)
    for content in strict:
        for task in content["tasks"]:
            task["bytes"]["statistics"] += 40_000
            task["bytes"]["strict"] += 40_000
    assert {finding.id for finding in found(tmp_path / "c", strict)} == {"budget-not-met"}


def test_options_of_upper_bounds_alone_are_a_note(tmp_path):
    joint = method("Joint", exemplars=500, change={**UPPER_BOUND, "config.trainer.epochs": 50})
    own = [finding for finding in found(tmp_path, [*pair(), *joint]) if finding.id == "different-epochs"]
    assert [finding.level for finding in own] == ["note"]
    assert "Only upper bounds differ" in own[0].text


def test_upper_bounds_take_no_part_in_memory(tmp_path):
    joint = method("Joint", exemplars=500, change={**UPPER_BOUND, "budget": {"bytes": 5}})
    assert found(tmp_path, [*pair(), *joint]) == []


def test_a_growing_network_without_a_budget_is_a_problem(tmp_path):
    contents = [*grown("A", change={"config.model.backbone": "convnet2"}), *method("B")]
    assert ("problem", "different-backbones") in [(f.level, f.id) for f in found(tmp_path, contents)]


def test_growth_is_seen_in_files_that_do_not_divide_the_network(tmp_path):
    contents = grown("A", budget=STRICT, change={"config.model.backbone": "convnet2"})
    for content in contents:
        for task in content["tasks"]:
            for part in ("backbone", "head", "normalisation", "statistics", "lengths"):
                del task["bytes"][part]
    ids = {f.id for f in found(tmp_path, [*contents, *method("B", budget=STRICT)])}
    assert ids == {"backbone-spent-as-memory"}


def test_pretraining_on_other_classes_differs_however_many_they_are(tmp_path):
    contents = pair(PRETRAINED, {"pretrained_classes": ["zebra", "okapi"]})
    own = [finding for finding in found(tmp_path, contents) if finding.id == "different-pretraining"]
    assert "2 classes in A; 2 classes in B" in own[0].text


def test_several_runs_of_one_row_are_all_checked(tmp_path):
    contents = pair()
    put(contents[1], "exemplar_free", True)
    own = found(tmp_path, contents)
    assert [(f.id, "run1" in f.text) for f in own] == [("exemplars-in-exemplar-free", True)]


def test_classes_that_an_earlier_run_learned_of_the_first_task_are_no_overlap(tmp_path):
    names = result("A")["scenario"]["class_names"]  # two in each task

    def overlap(folder, learned, stream):
        own = {"pretrained_classes": learned, "pretrained_stream": stream}
        return [f.text for f in found(tmp_path / folder, pair(own, own)) if f.id == "pretraining-overlap"]

    assert overlap("own", names[:2], names[:2]) == []
    assert "2 of the stream's classes" in overlap("undeclared", names[:2], None)[0]
    beyond = overlap("beyond", names[:4], names[:4])[0]
    assert "2 of the stream's classes" in beyond and names[3] in beyond and names[0] not in beyond


def test_a_category_of_less_than_nothing_is_a_problem_though_the_sum_is_right(tmp_path):
    contents = pair()
    for task in contents[0]["tasks"]:
        task["bytes"]["statistics"] -= 300
        task["bytes"]["head"] += 300
    own = [f for f in found(tmp_path, contents) if f.id == "bytes-do-not-add-up"]
    assert len(own) == 1 and "run0" in own[0].text and "less than 0 bytes of statistics." in own[0].text


def test_methods_with_the_same_draws_are_fair_and_other_draws_of_one_seed_are_not(tmp_path):
    fair = [*drawn("A", seeds=(0, 1)), *drawn("B", seeds=(0, 1))]
    assert {f.id for f in found(tmp_path / "fair", fair)} == set()
    put(fair[2], "fingerprint", "9" * 64)
    assert {f.id for f in found(tmp_path / "other", fair)} == {"different-draws"}


def test_an_overlap_is_looked_for_in_the_classes_of_every_run(tmp_path):
    contents = drawn("A", seeds=(0, 1))
    names = contents[0]["scenario"]["class_names"]
    for content in contents:
        put(content, "pretrained_classes", names[:2])
        put(content, "pretrained_stream", names[:2])  # the first task's in the first run alone
    put(contents[1], "scenario.class_names", names[::-1])
    own = [f.text for f in found(tmp_path, contents) if f.id == "pretraining-overlap"]
    assert len(own) == 1 and "2 of the stream's classes" in own[0]
