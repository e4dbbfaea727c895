"""Find out how sure a model's scores are, with pictures that it has not learned."""

from __future__ import annotations

import dataclasses
from typing import Any

from cil.errors import UserError
from cil.evaluation.probabilities import Probabilities, calibrate, of_strategy
from cil.verbs.learned import Learned, State, event, plain
from cil.verbs.pictures_given import known


def calibrated(learned: Learned, data: Any = None) -> State:
    """The model with a temperature and confidences; what was found before is replaced.

    Args:
        learned: the model; it stays as it is.
        data: pictures that were not learned, with the names of their classes; None: the exemplars.

    Raises:
        UserError: there are no pictures, or one is of a class that is not known.
    """
    if data is None and not len(learned.exemplars):
        raise UserError("this model keeps no exemplars to calibrate it with; give pictures that it has not learned")
    held = known(data, learned.blueprint)
    blueprint = dataclasses.replace(learned.blueprint, calibrated=True)
    experiment = dataclasses.replace(learned.experiment, calibration=learned.experiment.calibration or 0.0)
    experiment.sized = blueprint.sized
    room = {f"strategy/probabilities.{name}": value for name, value in Probabilities().state_dict().items()}
    with learned.computing():
        start = learned.start(experiment, {**room, **learned.tensors()})
        strategy, exemplars = start.strategy.eval(), start.exemplars
        n = len(blueprint.class_names)
        calibrate(strategy, held, n, exemplars, learned.place, alone=data is not None)
    found = of_strategy(strategy)
    assert found is not None, "there is room for them"
    made = event("calibrate", **found.as_json(), exemplars=data is None)
    return State(learned.origin, blueprint, plain(strategy, exemplars), (*learned.history, made))
