"""ER, dark experience replay, A-GEM and GEM: batches, losses and projections, against loops and exact properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from cil.errors import UserError
from cil.experiment.run import run
from cil.learning.batch import Batch
from cil.memory.exemplars import Memory
from cil.ops.columns import among
from cil.ops.projection import flat, multipliers, off, put
from cil.testing.lab import Lab
from strategies.online.agem import AGEM
from strategies.online.der_dark import DarkER
from strategies.online.er import ER
from strategies.online.gem import GEM

EPOCHS = (2, 2, 2)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- projections ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 9999), n=st.integers(2, 30))
def test_a_gradient_loses_its_part_against_a_reference(seed, n):
    gradient, reference = torch.randn(2, n, generator=seeded(seed), dtype=torch.float64)
    turned = off(gradient, reference)
    if gradient @ reference >= 0:
        assert torch.equal(turned, gradient)
    else:
        assert float(turned @ reference) == pytest.approx(0.0, abs=1e-9)
        # The nearest one of all that are not against it: what was taken away lies along the reference.
        part = gradient - turned
        assert torch.linalg.matrix_rank(torch.stack([part, reference]), atol=1e-9) == 1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 9999), n_refs=st.integers(1, 5), margin=st.sampled_from([0.0, 0.5]))
def test_multipliers_solve_the_quadratic_program(seed, n_refs, margin):
    draws = torch.randn(n_refs + 1, 8, generator=seeded(seed), dtype=torch.float64)
    references, gradient = draws[:-1], draws[-1]
    found = multipliers(references @ gradient, references @ references.T, margin)
    turned = gradient + references.T @ found
    assert (found >= margin - 1e-12).all()
    # Karush, Kuhn and Tucker: no product is negative, and where a multiplier is above its bound the product is 0.
    products = references @ turned
    assert (products >= -1e-8).all()
    assert (products[found > margin + 1e-9].abs() < 1e-8).all()
    bounds = [(margin, None)] * n_refs
    gram, linear = (references @ references.T).numpy(), (references @ gradient).numpy()
    best = minimize(lambda v: v @ gram @ v / 2 + linear @ v, np.ones(n_refs), bounds=bounds, tol=1e-14)
    mine = found.numpy()
    assert mine @ gram @ mine / 2 + linear @ mine <= best.fun + 1e-6


def test_references_may_depend_on_one_another():
    reference = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    gradient = torch.tensor([-1.0, -1.0, 3.0], dtype=torch.float64)
    both = torch.stack([reference, 2 * reference])
    found = multipliers(both @ gradient, both @ both.T)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(gradient + both.T @ found, off(gradient, reference))


def test_flat_gradients_go_back_where_they_came_from():
    strategy = Lab(ER).build()
    strategy.model.head.grow(2)
    strategy.model.backbone.stem[0].requires_grad_(False)
    x = torch.rand(4, 1, 8, 8)
    strategy.loss(x, torch.tensor([0, 1, 0, 1])).backward()
    strategy.model.head.bias.grad = None  # took no part
    gradient = flat(strategy)
    assert len(gradient) == sum(p.numel() for p in strategy.parameters() if p.requires_grad)
    put(strategy, 2 * gradient)
    torch.testing.assert_close(flat(strategy), 2 * gradient)
    assert strategy.model.backbone.stem[0].weight.grad is None


# --- A-GEM and GEM ----------------------------------------------------------------------------------------------------


def turned(kind, reference_of, **options):
    """Products of the gradients before and after the hook with what they were compared with, over a run."""
    seen = []

    class Watched(kind):
        def gradients(self, trainer):
            before, draws = flat(self), trainer.draws.get_state()
            own = reference_of(self, trainer)
            trainer.draws.set_state(draws)
            super().gradients(trainer)
            if own is not None:
                seen.append(((own @ before), (own @ flat(self)), torch.equal(before, flat(self))))

    experiment = Lab(Watched, options).experiment(epochs=EPOCHS)
    experiment.precision = "64"
    run(experiment)
    return seen


def test_agem_never_steps_against_its_exemplars():
    def reference(strategy, trainer):
        if strategy.replay is None:
            return None
        drawn = strategy.replay.subset(trainer.draw(len(strategy.replay), 6))
        found = trainer.gradients_of(strategy, drawn, images=len(drawn), augment=True)
        return torch.cat([one.flatten() for one in found.values()])

    seen = turned(AGEM, reference, memory_batch=6)
    assert any(before < 0 for before, _, _ in seen)
    for before, after, same in seen:
        assert same if before >= 0 else abs(float(after)) < 1e-9


@pytest.mark.parametrize("options", [{}, {"margin": 0.0}, {"columns": "all"}, {"memory_batch": 3}])
def test_gem_never_steps_against_any_former_task(options):
    def references(strategy, trainer):
        found = strategy.references(trainer)
        return torch.stack(found) if found else None

    seen = turned(GEM, references, **options)
    assert any((before < 0).any() for before, _, _ in seen)
    if not options:  # among all classes new images are against old ones throughout
        assert any((before >= 0).all() for before, _, _ in seen)
    assert {len(before) for before, _, _ in seen} == {1, 2}, "one product for each former task"
    for before, after, same in seen:
        assert (after >= -1e-9).all()
        assert same == bool((before >= 0).all())


def test_gem_compares_a_task_with_its_own_columns():
    losses = []

    class Watched(GEM):
        def loss(self, x, y):
            found = super().loss(x, y)
            first = min(self.own)
            wanted = F.cross_entropy(self(x)[:, first : first + len(self.own)], y - first)
            losses.append((float(found.detach()), float(wanted.detach())))
            return found

    run(Lab(Watched).experiment(epochs=EPOCHS))
    assert len(losses) > 6
    # The second pass over a batch has the same batch statistics, so the losses agree.
    assert all(one == pytest.approx(other, rel=1e-5) for one, other in losses)


def test_columns_of_some_classes():
    logits, y = torch.arange(12.0).view(2, 6), torch.tensor([5, 1])
    some, labels = among(logits, y, [1, 2, 5])
    assert some.tolist() == [[1.0, 2.0, 5.0], [7.0, 8.0, 11.0]] and labels.tolist() == [2, 0]


# --- ER and dark experience replay ------------------------------------------------------------------------------------


def test_er_learns_as_many_exemplars_as_new_images():
    shares = []

    class Watched(ER):
        def batch_loss(self, batch):
            shares.append((self.model.head.n_classes, float(batch.old.double().mean()), len(batch.x)))
            return super().batch_loss(batch)

    run(Lab(Watched).experiment(epochs=EPOCHS))
    assert {share for n, share, _ in shares if n == 2} == {0.0}
    assert {share for n, share, _ in shares if n == 3} == {0.5}


def batch(strategy, stored, seed=0):
    """Four new images, and two draws of three exemplars, with their columns."""
    x = torch.rand(10, 1, 8, 8, generator=seeded(seed), dtype=torch.float64)
    source = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    columns = {"scores": torch.cat([torch.full((4, stored.shape[1]), torch.nan), stored, stored])}
    return Batch(x, torch.tensor([2, 2, 2, 2, 0, 1, 0, 1, 1, 0]), torch.arange(10), source, columns)


def test_the_loss_of_dark_experience_replay_equals_loops():
    strategy = DarkER(Lab(DarkER).network(), alpha=0.7, beta=0.4).double()
    strategy.model.head.grow(3)
    strategy.eval()
    stored = torch.randn(3, 2, generator=seeded(1))
    stored[1, 1] = torch.nan  # taken up when there was one class
    own = batch(strategy, stored)
    z = strategy(own.x).detach().double()
    new = sum(-F.log_softmax(z[i], 0)[own.y[i]] for i in range(4)) / 4
    again = sum(-F.log_softmax(z[i], 0)[own.y[i]] for i in range(7, 10)) / 3
    pulls = [((z[4][:2] - stored[0]) ** 2).mean(), (z[5][0] - stored[1, 0]) ** 2, ((z[6][:2] - stored[2]) ** 2).mean()]
    assert float(strategy.batch_loss(own).detach()) == pytest.approx(float(new + 0.4 * again + 0.7 * sum(pulls) / 3))


def test_what_was_not_known_gives_no_gradient():
    strategy = DarkER(Lab(DarkER).network(), alpha=1.0, beta=0.0).double()
    strategy.model.head.grow(3)
    strategy.eval()
    strategy.batch_loss(batch(strategy, torch.full((3, 2), torch.nan))).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in strategy.parameters())


@pytest.mark.parametrize(("beta", "label", "draws"), [(0.0, "DER (dark)", 1), (0.5, "DER++", 2)])
def test_dark_experience_replay_draws_once_or_twice(beta, label, draws):
    sources = set()

    class Watched(DarkER):
        def batch_loss(self, batch):
            sources.update(batch.source.tolist())
            return super().batch_loss(batch)

    experiment = Lab(Watched, {"beta": beta}).experiment(epochs=EPOCHS)
    _, strategy, exemplars = run(experiment)
    assert sources == set(range(draws + 1))
    assert strategy.label == label
    assert exemplars.columns["scores"].shape == (len(exemplars), 6)


def test_stored_scores_are_those_of_the_network_that_took_an_image_up():
    kept = []

    class Watched(DarkER):
        def begin(self, task):
            self.width = task.n_seen

        def describe(self, x):
            return {"scores": torch.full((len(x), self.width), float(self.width))}

    def note(records, strategy, exemplars):
        kept.append(exemplars.columns["scores"].copy())

    run(Lab(Watched).experiment(epochs=(1, 1, 1)), on_task=note)
    for after, widths in zip(kept, ([2], [2, 3], [2, 3, 6]), strict=True):
        assert set(after[:, 0].tolist()) == set(map(float, widths))
        for row in after:
            own = int(row[0])
            assert (row[:own] == own).all() and np.isnan(row[own:]).all()


def test_dark_experience_replay_learns_a_stream_with_a_reservoir():
    lab = Lab(DarkER)
    experiment = lab.stream_experiment(every=32)
    experiment.memory = Memory(exemplars=10, selection="reservoir")
    records, _, exemplars = run(experiment)
    assert len(exemplars) == 10
    assert records[-1]["bytes"]["columns"] == 4 * 10 * 6
    assert np.isfinite(exemplars.columns["scores"][:, 0]).all()


def test_senseless_options_are_refused():
    network = Lab(ER).network()
    for kind, wrong in (
        (DarkER, {"alpha": -1.0}),
        (DarkER, {"beta": -1.0}),
        (AGEM, {"memory_batch": 0}),
        (GEM, {"memory_batch": 0}),
        (GEM, {"margin": -0.5}),
        (GEM, {"columns": "new"}),
    ):
        with pytest.raises(UserError, match=f"strategy\\.{next(iter(wrong))}"):
            kind(network, **wrong)
