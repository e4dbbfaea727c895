"""EWC, SI and MAS: importances against loops over images and steps, the penalty against the sum that it stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cil.errors import UserError
from cil.experiment.run import run
from cil.memory.ledger import measure
from cil.testing.lab import Lab, toy_scenario
from strategies.regularisation.ewc import EWC
from strategies.regularisation.mas import MAS
from strategies.regularisation.si import SI

EPOCHS = (2, 2, 2)


def watched(kind, watch, **options):
    """Run a strategy in float64; ``watch(strategy, task, trainer, settle)`` stands in for its ``settle``."""

    class Watched(kind):
        def settle(self, task, trainer):
            watch(self, task, trainer, super().settle)

    lab = Lab(Watched, options)
    experiment = lab.experiment(epochs=EPOCHS)
    experiment.precision = "64"
    return run(experiment)[1]


def each_image(strategy, task, trainer):
    """(x, y) of one training image after another, as it is tested."""
    data = task.train
    x = trainer.placed().augmentation.test(data.gather()).double()
    return [(x[i : i + 1], data.labels[i : i + 1]) for i in range(len(data))]


def loop(strategy, task, trainer, loss, of):
    """The mean over images of what ``of`` makes of each one's gradient, written out."""
    named = dict(strategy.model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    pairs = each_image(strategy, task, trainer)
    for x, y in pairs:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(strategy(x), y), list(named.values()))
        for name, gradient in zip(named, gradients, strict=True):
            total[name] += of(gradient) / len(pairs)
    return total


def test_ewc_adds_up_the_squared_gradients_of_each_image():
    wanted = {}

    def watch(strategy, task, trainer, settle):
        own = loop(strategy, task, trainer, F.cross_entropy, torch.square)
        before = {name: values.clone() for name, _, values in strategy.importance.beside(strategy.model)}
        settle(task, trainer)
        for name, values in own.items():
            wanted[name] = before[name] + values
            torch.testing.assert_close(strategy.importance[name], wanted[name], rtol=1e-9, atol=1e-15)

    strategy = watched(EWC, watch)
    assert wanted["head.weight"].shape == (6, 12)
    assert all((strategy.importance[name] > 0).any() for name in wanted)


def test_one_penalty_of_ewc_is_the_sum_of_one_for_each_task():
    penalties = []

    def watch(strategy, task, trainer, settle):
        before = {name: values.clone() for name, _, values in strategy.importance.beside(strategy.model)}
        settle(task, trainer)
        fisher = {n: v - before[n] for n, _, v in strategy.importance.beside(strategy.model)}
        penalties.append((fisher, {n: p.detach().clone() for n, p, _ in strategy.importance.beside(strategy.model)}))

    strategy = watched(EWC, watch, strength=4.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in strategy.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    named = dict(strategy.model.named_parameters())
    found = torch.autograd.grad(strategy.strength / 2 * strategy.penalty(), list(named.values()))
    wanted = torch.zeros((), dtype=torch.float64)
    for fisher, anchor in penalties:
        for name, values in fisher.items():  # earlier tasks know nothing of rows that came later
            known = tuple(map(slice, values.shape))
            wanted = wanted + 2.0 * (values * (named[name][known] - anchor[name]).square()).sum()
    for one, other in zip(found, torch.autograd.grad(wanted, list(named.values())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_mas_adds_up_how_the_squared_length_of_scores_moves():
    def watch(strategy, task, trainer, settle):
        own = loop(strategy, task, trainer, lambda z, y: z.square().sum(), torch.abs)
        before = {name: values.clone() for name, _, values in strategy.importance.beside(strategy.model)}
        settle(task, trainer)
        for name, values in own.items():
            torch.testing.assert_close(strategy.importance[name], before[name] + values, rtol=1e-9, atol=1e-14)
            assert torch.equal(strategy.anchor[name], dict(strategy.model.named_parameters())[name])

    watched(MAS, watch)


class Recorded(SI):
    """Notes parameters and gradients around each step."""

    def gradients(self, trainer):
        loss = {n: p.grad.clone() for n, p in self.model.named_parameters()}
        super().gradients(trainer)
        self.notes.append([loss, {n: p.clone() for n, p in self.model.named_parameters()}])
        with torch.enable_grad():
            penalty = torch.autograd.grad(self.strength * self.penalty(), list(self.model.parameters()))
        for (name, parameter), own in zip(self.model.named_parameters(), penalty, strict=True):
            torch.testing.assert_close(parameter.grad, loss[name] + own, rtol=1e-9, atol=1e-15)

    def stepped(self):
        super().stepped()
        self.notes[-1].append({n: p.clone() for n, p in self.model.named_parameters()})

    def begin(self, task):
        super().begin(task)
        self.notes = []
        self.begun = {n: p.clone() for n, p in self.model.named_parameters()}

    def settle(self, task, trainer):
        before = {name: values.clone() for name, _, values in self.importance.beside(self.model)}
        super().settle(task, trainer)
        for name, parameter in self.model.named_parameters():
            path = sum(-gradient[name] * (after[name] - at[name]) for gradient, at, after in self.notes)
            wanted = before[name] + path / ((parameter - self.begun[name]) ** 2 + self.damping)
            torch.testing.assert_close(self.importance[name], wanted, rtol=1e-9, atol=1e-13)
        self.settled = True

    def end(self, task):
        super().end(task)
        del self.notes, self.begun


def test_si_follows_every_step_by_the_gradient_of_the_tasks_loss_alone():
    experiment = Lab(Recorded, {"strength": 3.0}).experiment(epochs=EPOCHS)
    experiment.precision = "64"
    assert run(experiment)[1].settled


def test_the_path_of_si_is_what_the_loss_lost():
    """With small steps of plain gradient descent the path integral over all parameters is the fall of the loss."""
    falls = []

    class Path(SI):
        def settle(self, task, trainer):
            falls.append(sum(float(values.sum()) for _, _, values in self.path.beside(self.model)))

    experiment = Lab(Path).experiment(epochs=(1, 1, 1))
    trainer = experiment.trainer
    trainer.batch_size, trainer.lr, trainer.momentum, trainer.weight_decay = 48, 1e-3, 0.0, 0.0
    trainer.epochs, trainer.per_task = 40, None
    experiment.precision = "64"
    strategy, task = experiment.fresh(), experiment.scenario.tasks[0]
    losses = []
    experiment.grow(strategy, task)
    strategy.begin(task)
    here = trainer.at(experiment.place(0))
    plain = here.train_step
    here.train_step = lambda *words: losses.append(plain(*words)) or losses[-1]
    strategy.fit(task, None, here)
    assert len(losses) == 40  # each epoch is one batch of all 48 images
    assert falls[0] == pytest.approx(float(losses[0] - losses[-1]), rel=0.1)
    assert falls[0] > 0


@pytest.mark.parametrize("kind", [EWC, SI, MAS])
def test_two_numbers_for_each_parameter_are_carried(kind):
    strategy = Lab(kind).build()
    for task in toy_scenario().tasks:
        strategy.grow(task.without_data())
    size, n = measure(strategy, 0, 0), sum(parameter.numel() for parameter in strategy.parameters())
    assert size["statistics"] == 8 * n
    assert size["strict"] == 12 * n + size["normalisation"]


@pytest.mark.parametrize("kind", [EWC, SI, MAS])
def test_a_strong_penalty_holds_what_no_penalty_lets_go(kind):
    """With a penalty parameters move less in later tasks."""
    moved = {}
    for strength in (0.0, 5.0):
        states = []

        def note(records, strategy, exemplars, states=states):
            states.append(strategy.model.backbone.stem[0].weight.detach().clone())

        run(Lab(kind, {"strength": strength}).experiment(epochs=EPOCHS), on_task=note)
        moved[strength] = float((states[-1] - states[0]).norm())
    assert moved[5.0] < moved[0.0]


@pytest.mark.parametrize("kind", [EWC, SI, MAS])
def test_senseless_options_are_refused(kind):
    for wrong, told in (({"strength": -1.0}, "strategy.strength"), ({"columns": "old"}, "Legal: all, new")):
        with pytest.raises(UserError, match=told):
            kind(Lab(kind).network(), **wrong)
    with pytest.raises(UserError, match=r"strategy\.damping"):
        SI(Lab(SI).network(), damping=0.0)
    with pytest.raises(UserError, match=r"strategy\.cap"):
        EWC(Lab(EWC).network(), cap=0.0)
