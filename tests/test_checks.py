"""Every strategy keeps every promise, and every mutant is caught."""

from __future__ import annotations

import functools
import inspect

import pytest

from cil.command.names import strategies
from cil.testing import checks
from cil.testing.lab import Lab
from tests import mutants

# init_args of variants that deserve the whole suite, too.
VARIANTS = {
    "icarl": [{"loss_form": "softmax"}],
    "wa": [{"clip_weights": False, "head_bias": False}, {"scale_bias": True, "only_shrink": True}],
    "finetune": [{"columns": "all"}],
    "joint": [{"restart": False}],
    "acil": [{"solver": "recursive"}, {"storage": "full", "products": "float64"}],
    "gkeal": [{"sigma": None}],
    "dsal": [{"residual_batch": 10}],
    "fetril": [{"classifier": "sgd"}, {"classifier": "sgd", "restart": False, "similarity": "euclidean"}],
    "ewc": [{"released": True, "strength": 1000.0}],
    "lwf": [{"keep": 3.0, "warm_up": 0.0}],
    "mas": [{"columns": "all"}],
    "der_dark": [{"beta": 0.0}],
    "gem": [{"memory_batch": 4, "columns": "all"}],
}
CASES = [(name, options) for name in sorted(strategies()) for options in [{}, *VARIANTS.get(name, [])]]
CHECKS = checks.all_checks()


@functools.cache
def lab(name: str, options: tuple) -> Lab:
    return Lab(strategies()[name], dict(options))


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value) if value else "default")
def test_a_strategy_keeps_every_promise(name, options):
    own = lab(name, tuple(options.items()))
    broken = {check: checks.failure(function, own) for check, function in CHECKS.items()}
    assert not {check: error for check, error in broken.items() if error is not None}


def test_every_file_of_strategies_is_discovered():
    assert set(strategies()) >= {"finetune", "joint", "replay", "icarl", "wa"}
    assert set(VARIANTS) <= set(strategies())


CAUGHT_BY = {
    "HeadThatDoesNotGrow": "scores_every_class_seen",
    "HeadForAllClasses": "scores_every_class_seen",
    "HiddenTeacher": "nothing_is_carried_outside_the_state",
    "TeacherLeftBehind": "state_is_what_grow_made",
    "ChooserLeftBehind": "state_is_what_grow_made",
    "CountsInPython": "rebuilt_strategy_goes_on_alike",
    "CountsStepsInPython": "interrupted_training_goes_on_alike",
    "CountsStepsAfterwards": "interrupted_training_goes_on_alike",
    "StepsByItself": "gradients_change_no_parameter",
    "KeepsFisherAside": "nothing_is_carried_outside_the_state",
    "RemembersByPosition": "nothing_is_carried_outside_the_state",
    "StoresMoreThanDeclared": "exemplar_columns_are_as_declared",
    "DescribesTheBatch": "exemplar_columns_are_as_declared",
    "CountsInBuffer": "state_is_what_grow_made",
    "KeepsOldImages": "touches_no_past_or_test_image",
    "KeepsACopyOfImages": "nothing_is_carried_outside_the_state",
    "DependsOnTheBatch": "scores_do_not_depend_on_the_batch",
    "TrainsWhilePredicting": "predicting_changes_nothing",
    "DrawsWhilePredicting": "predicting_changes_nothing",
    "ThawsStatistics": "frozen_stays_frozen",
    "MovesFrozenWeights": "frozen_stays_frozen",
    "OwnRandomness": "same_seed_same_result",
    "AlwaysTheSame": "same_seed_same_result",
    "NotANumber": "scores_every_class_seen",
    "LearnsNothing": "learns_the_first_task",
    "LearnsInEval": "learns_the_first_task",
    "ForgetsItsParameter": "parameters_kept",
    "HidesItsParameter": "parameters_kept",
    "TakesItByPosition": "parameters_kept",
    "GrowsWithTheData": "state_is_what_grow_made",
    "NeedsTwoClasses": "takes_tasks_of_any_size",
    "NeedsNewClasses": "learns_streams_as_tagged",
    "SaysExemplarFree": "scores_every_class_seen",
    "SaysFrozen": "freezes_its_backbone_as_tagged",
    "SpoilsExemplars": "quota_is_kept",
    "HidesInTheModule": "nothing_is_carried_outside_the_state",
    "Speechless": "names_its_source",
    "KeepsFeatures": "nothing_is_carried_outside_the_state",
    "SumsInPython": "rebuilt_strategy_goes_on_alike",
    "HiddenWidth": "rebuilt_strategy_goes_on_alike",
}


@pytest.mark.parametrize(("name", "check"), CAUGHT_BY.items())
def test_a_mutant_is_caught(name, check):
    mutants.SHELF.clear()
    assert checks.failure(CHECKS[check], Lab(getattr(mutants, name))) is not None


def test_every_mutant_is_listed_and_every_check_has_one():
    made = {n for n, value in vars(mutants).items() if inspect.isclass(value) and value.__module__ == mutants.__name__}
    assert made == set(CAUGHT_BY)
    # What no mutant can break, because the engine does it: the tests below break the engine.
    without = set(CHECKS) - set(CAUGHT_BY.values())
    assert without == {
        "no_numbers_beside_the_constructor",
        "exemplar_free_means_none",
        "bytes_are_as_planned",
        "survives_classes_with_few_images",
    }


def test_a_number_beside_the_constructor_is_found(monkeypatch):
    check = CHECKS["no_numbers_beside_the_constructor"]
    assert checks.failure(check, Lab(mutants.LearnsNothing)) is None
    monkeypatch.setattr(mutants, "ALPHA", 0.5, raising=False)
    assert "ALPHA" in checks.failure(check, Lab(mutants.LearnsNothing))


ENGINE_MUTANTS = {
    "bytes_are_as_planned": ("cil.testing.lab.measure_run", lambda strategy, exemplars: {"strict": 1}),
    "survives_classes_with_few_images": ("cil.experiment.run.Exemplars.update", lambda *_: None),
    "exemplar_free_means_none": ("cil.experiment.experiment.Experiment.check", lambda self: None),
    "learns_streams_as_tagged": ("cil.experiment.experiment.Experiment.check", lambda self: None),
}
ON = {"exemplar_free_means_none": "finetune", "learns_streams_as_tagged": "wa"}


@pytest.mark.parametrize("check", ENGINE_MUTANTS)
def test_an_engine_that_breaks_promises_is_caught(check, monkeypatch):
    name = ON.get(check, "replay")
    assert checks.failure(CHECKS[check], Lab(strategies()[name])) is None
    monkeypatch.setattr(*ENGINE_MUTANTS[check])
    assert checks.failure(CHECKS[check], Lab(strategies()[name])) is not None
