"""The maths of the strategies against explicit loops, and the losses that are built of it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.experiment.run import run
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.ops.alignment import align
from cil.ops.distillation import distillation
from cil.ops.freezing import freeze, frozen_copy, train_mode
from cil.ops.growing import extended
from cil.testing.lab import Lab
from strategies.baselines.finetune import Finetune
from strategies.rehearsal.icarl import ICaRL, binary_loss
from strategies.rehearsal.wa import WA


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def entropy_between(target: list[list[float]], logits: list[list[float]], temperature: float) -> float:
    """Cross-entropy of softened scores by loops, mean over the batch."""
    total = 0.0
    for t, z in zip(target, logits, strict=True):
        p, q = softmax(t, temperature), softmax(z, temperature)
        total -= sum(p[k] * math.log(q[k]) for k in range(len(p)))
    return total / len(target)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def task(new, index=1):
    return Task(index, new, tuple(new), ImageSet(np.zeros((0, 1, 1, 1), np.uint8), np.zeros(0)))


# --- distillation ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    classes=st.integers(1, 6),
    temperature=st.floats(0.5, 5),
    scale=st.floats(0.1, 5),
    seed=st.integers(0, 999),
)
def test_distillation_equals_loops(batch, classes, temperature, scale, seed):
    logits, target = scale * randn(batch, classes, seed=seed), scale * randn(batch, classes, seed=seed + 1000)
    expected = entropy_between(target.tolist(), logits.tolist(), temperature)
    assert float(distillation(logits, target, temperature)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distillation_has_temperature_two_unless_told(dtype):
    logits, target = randn(3, 4, dtype=dtype), randn(3, 4, seed=1, dtype=dtype)
    got = distillation(logits, target)
    assert got.dtype == dtype
    assert got.shape == ()
    assert float(got) == pytest.approx(entropy_between(target.tolist(), logits.tolist(), 2.0), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_equal_scores_give_the_entropy_and_no_gradient(temperature):
    logits = randn(5, 6).requires_grad_()
    loss = distillation(logits, logits.detach().clone(), temperature)
    entropy = -sum(p * math.log(p) for row in logits.tolist() for p in softmax(row, temperature)) / 5
    assert loss.item() == pytest.approx(entropy, rel=1e-9)
    loss.backward()
    assert float(logits.grad.abs().max()) < 1e-15


def test_the_gradient_is_that_of_the_divergence_without_t_squared():
    logits, target, temperature = randn(3, 4).requires_grad_(), randn(3, 4, seed=1), 3.0
    distillation(logits, target, temperature).backward()
    for b in range(3):
        p, q = softmax(target[b].tolist(), temperature), softmax(logits[b].tolist(), temperature)
        expected = [(q[k] - p[k]) / temperature / 3 for k in range(4)]
        assert logits.grad[b].tolist() == pytest.approx(expected, rel=1e-9)


def test_distillation_is_stable_for_large_scores():
    assert float(distillation(torch.tensor([[1e4, 0.0]]), torch.tensor([[1e4, 0.0]]))) == 0


# --- alignment -------------------------------------------------------------------------------------------------------


def test_align_on_a_matrix_worked_by_hand():
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [0.0, 2.0]])  # norms 5, 1 | 10, 2
    assert align(weight, 2) == pytest.approx(0.5)
    assert weight.tolist() == [[3, 4], [0, 1], [3, 4], [0, 1]]


@settings(max_examples=40, deadline=None)
@given(
    n_old=st.integers(1, 6),
    n_new=st.integers(1, 6),
    d=st.integers(1, 8),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 999),
)
def test_align_makes_mean_norms_equal_once(n_old, n_new, d, scale, seed):
    weight = randn(n_old + n_new, d, seed=seed, dtype=torch.float32)
    weight[n_old:] *= scale
    before = weight.clone()
    gamma = align(weight, n_old)
    norms = np.sqrt((weight.double().numpy() ** 2).sum(1))
    assert norms[:n_old].mean() == pytest.approx(norms[n_old:].mean(), rel=1e-6)
    assert weight[:n_old].numpy().tobytes() == before[:n_old].numpy().tobytes()
    torch.testing.assert_close(weight[n_old:], gamma * before[n_old:], rtol=1e-6, atol=0)
    assert align(weight, n_old) == pytest.approx(1, abs=1e-6)


def test_align_changes_no_winner_among_new_classes():
    weight, x = randn(9, 5), randn(50, 5, seed=1)
    before = (x @ weight[4:].T).argmax(1)
    align(weight, 4)
    assert torch.equal((x @ weight[4:].T).argmax(1), before)


def test_only_shrink_never_lengthens():
    short, long = torch.tensor([[2.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    assert align(short, 1, only_shrink=True) == 1
    assert short.tolist() == [[2], [1]]
    assert align(long, 1, only_shrink=True) == pytest.approx(0.5)
    assert long.tolist() == [[2], [2]]
    assert align(short, 1) == pytest.approx(2)
    assert short.tolist() == [[2], [2]]


@pytest.mark.parametrize("n_old", [0, 3, 4, -1])
def test_align_needs_old_and_new_rows(n_old):
    weight = torch.ones(3, 2)
    with pytest.raises(ValueError, match=f"{n_old} of 3"):
        align(weight, n_old)
    assert torch.equal(weight, torch.ones(3, 2))


def test_align_works_on_a_parameter_that_learns():
    head = LinearHead(3)
    head.grow(4)
    before = head.weight
    align(head.weight, 2)
    assert head.weight is before
    assert head.weight.requires_grad
    assert head.weight.is_leaf


def test_align_refuses_new_rows_of_zeros():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="all zero"):
        align(weight, 1)
    assert weight.tolist() == [[3.0, 4.0], [0.0, 0.0]]


# --- freezing --------------------------------------------------------------------------------------------------------


def tree():
    return nn.ModuleDict(
        {
            "frozen": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()),
            "mixed": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()),
        }
    )


def test_freeze_stops_gradients_and_statistics():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert freeze(module) is module
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(part.training for part in module.modules())


def test_train_mode_leaves_frozen_subtrees_in_eval_mode():
    module = tree().eval()
    module["frozen"].requires_grad_(False)
    module["mixed"][0].requires_grad_(False)
    train_mode(module)
    assert module.training
    assert not any(part.training for part in module["frozen"].modules())
    assert module["mixed"].training
    assert not module["mixed"][0].training
    assert module["mixed"][1].training
    assert module["mixed"][2].training  # without parameters: as its parent
    module.requires_grad_(True)
    train_mode(module)
    assert all(part.training for part in module.modules())
    module.requires_grad_(False)
    train_mode(module)
    assert not any(part.training for part in module.modules())


def test_a_frozen_copy_shares_nothing():
    module = tree()
    x = torch.randn(5, 2)
    teacher = frozen_copy(module)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.training
    expected = teacher["mixed"](x)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.zero_()
    assert torch.equal(teacher["mixed"](x), expected)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher["mixed"][1].training


# --- losses of strategies --------------------------------------------------------------------------------------------


class Identity(nn.Module):
    """Features are the pixels themselves."""

    num_features = 4

    def forward(self, x):
        return x.flatten(1)


def learning(kind, n_old, n_new, **options):
    """A strategy in its second task, moved away from its teacher; images; the scores of both."""
    torch.manual_seed(0)
    strategy = kind(Network(Identity(), LinearHead(4)), **options).double()
    strategy.grow(task(range(n_old), 0))
    strategy.begin(task(range(n_old), 0))
    strategy.end(task(range(n_old), 0))
    old = strategy.model.head.weight.detach().clone(), strategy.model.head.bias
    old = old if old[1] is None else (old[0], old[1].detach().clone())
    second = task(range(n_old, n_old + n_new))
    strategy.grow(second)
    strategy.begin(second)
    with torch.no_grad():
        for parameter in strategy.model.head.parameters():
            parameter += torch.randn_like(parameter)
    x = torch.rand(6, 4, 1, 1, dtype=torch.float64)
    logits, target = strategy(x), F.linear(x.flatten(1), *old)
    assert not torch.allclose(logits[:, :n_old], target)
    return strategy, x, logits.tolist(), target.tolist()


def cross_entropy(logits, y, smoothing=0.0):
    total = 0.0
    for z, label in zip(logits, y, strict=True):
        logp = [math.log(p) for p in softmax(z)]
        total -= (1 - smoothing) * logp[label] + smoothing * sum(logp) / len(logp)
    return total / len(y)


@pytest.mark.parametrize("n_old", [10, 20, 50, 90])
def test_wa_weighs_by_the_share_of_old_classes(n_old):
    strategy, x, logits, target = learning(WA, n_old, 10)
    y = [0, n_old - 1, n_old, n_old + 9, 3, n_old + 4]
    keep = {10: 10 / 20, 20: 20 / 30, 50: 50 / 60, 90: 90 / 100}[n_old]
    learn = cross_entropy(logits, y)
    kept = entropy_between(target, [row[:n_old] for row in logits], 2.0)
    got = strategy.loss(x, torch.tensor(y)).item()
    assert got == pytest.approx((1 - keep) * learn + keep * kept, rel=1e-9)
    # The same, from the outside: how far the loss moves from one of its terms towards the other.
    assert (got - learn) / (kept - learn) == pytest.approx(keep, rel=1e-6)


def test_wa_uses_its_temperature_and_the_smoothing_of_the_trainer():
    strategy, x, logits, target = learning(WA, 4, 2, temperature=3.0)
    strategy.label_smoothing = 0.2
    y = [0, 1, 2, 3, 4, 5]
    expected = cross_entropy(logits, y, 0.2) / 3 + entropy_between(target, [row[:4] for row in logits], 3.0) * 2 / 3
    assert strategy.loss(x, torch.tensor(y)).item() == pytest.approx(expected, rel=1e-9)


def test_wa_learns_its_first_task_with_cross_entropy():
    strategy = WA(Network(Identity(), LinearHead(4)))
    strategy.grow(task(range(3), 0))
    strategy.begin(task(range(3), 0))
    x, y = torch.rand(3, 4, 1, 1), [2, 0, 1]
    got = strategy.loss(x, torch.tensor(y)).item()
    assert got == pytest.approx(cross_entropy(strategy(x).tolist(), y), rel=1e-5)
    before = strategy.model.head.weight.detach().clone()
    strategy.end(task(range(3), 0))
    assert torch.equal(strategy.model.head.weight, before)


@pytest.mark.parametrize("scale_bias", [False, True])
def test_wa_aligns_at_the_end_and_drops_its_teacher(scale_bias):
    strategy, *_ = learning(WA, 3, 2, scale_bias=scale_bias)
    head = strategy.model.head
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    assert any(name.startswith("teacher") for name in strategy.state_dict())
    strategy.end(task(range(3, 5)))
    norms = head.weight.detach().norm(dim=1)
    gamma = float(weight.norm(dim=1)[:3].mean() / weight.norm(dim=1)[3:].mean())
    assert float(norms[3:].mean()) == pytest.approx(float(norms[:3].mean()), rel=1e-6)
    assert torch.equal(head.weight[:3], weight[:3])
    torch.testing.assert_close(head.bias[3:], bias[3:] * (gamma if scale_bias else 1))
    assert torch.equal(head.bias[:3], bias[:3])
    assert strategy.teacher is None
    assert set(strategy.state_dict()) == {"model.head.weight", "model.head.bias"}


def test_wa_clips_and_goes_without_bias_when_asked():
    strategy, x, *_ = learning(WA, 3, 2, clip_weights=True, head_bias=False)
    assert strategy.model.head.bias is None
    before = strategy.model.head.weight.detach().clone()
    assert (before < 0).any()
    strategy.loss(x, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(strategy.model.head.weight, before)
    with torch.no_grad():
        strategy.stepped()
    assert torch.equal(strategy.model.head.weight, before.clamp(min=0))


@pytest.mark.parametrize("clip", [True, False])
def test_wa_has_no_negative_weight_after_any_step_but_where_the_toolboxes_have(clip):
    seen = []

    class Seen(WA):
        def stepped(self):
            super().stepped()
            seen.append(float(self.model.head.weight.min()))

    run(Lab(Seen, {} if clip else {"clip_weights": False}).experiment(sizes=(2, 2, 2)))
    assert len(seen) > 20
    assert all((lowest == 0) == clip for lowest in seen)


def test_no_gradient_reaches_a_teacher():
    for kind, options in ((WA, {}), (ICaRL, {}), (ICaRL, {"loss_form": "softmax"})):
        strategy, x, *_ = learning(kind, 3, 2, **options)
        strategy.loss(x, torch.tensor([0, 1, 2, 3, 4, 0])).backward()
        assert all(parameter.grad is None for parameter in strategy.teacher.parameters())
        assert all(parameter.grad.abs().sum() > 0 for parameter in strategy.model.parameters())


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def binary_by_loops(logits, y, old):
    total = 0.0
    for b, row in enumerate(logits):
        for k, z in enumerate(row):
            target = sigmoid(old[b][k]) if k < len(old[b]) else float(y[b] == k)
            total -= target * math.log(sigmoid(z)) + (1 - target) * math.log(1 - sigmoid(z))
    return total / len(logits)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 5), n_old=st.integers(0, 4), n_new=st.integers(1, 4), seed=st.integers(0, 999))
def test_the_binary_loss_equals_loops(batch, n_old, n_new, seed):
    logits, old = 2 * randn(batch, n_old + n_new, seed=seed), 2 * randn(batch, n_old, seed=seed + 1000)
    y = torch.randint(0, n_old + n_new, (batch,), generator=torch.Generator().manual_seed(seed))
    expected = binary_by_loops(logits.tolist(), y.tolist(), old.tolist())
    assert float(binary_loss(logits, y, old)) == pytest.approx(expected, rel=1e-9)


def test_icarl_distils_the_old_columns():
    y = [0, 2, 3, 4, 1, 3]
    strategy, x, logits, target = learning(ICaRL, 3, 2)
    assert strategy.loss(x, torch.tensor(y)).item() == pytest.approx(binary_by_loops(logits, y, target), rel=1e-9)
    strategy, x, logits, target = learning(ICaRL, 3, 2, loss_form="softmax", keep=0.7, temperature=4.0)
    expected = cross_entropy(logits, y) + 0.7 * entropy_between(target, [row[:3] for row in logits], 4.0)
    assert strategy.loss(x, torch.tensor(y)).item() == pytest.approx(expected, rel=1e-9)


def test_icarl_takes_the_mean_over_as_many_outputs_as_asked():
    y, rate = torch.tensor([0, 2, 3, 4, 1, 3]), 2.0
    (summed, x, *_), (mean, *_) = learning(ICaRL, 3, 2), learning(ICaRL, 3, 2, mean_over=100)
    loss, whole = mean.loss(x, y), summed.loss(x, y)
    assert loss.item() == pytest.approx(whole.item() / 100, rel=1e-12)
    for strategy, value, own in ((mean, loss, rate), (summed, whole, rate / 100)):  # the same steps
        value.backward()
        torch.optim.SGD(strategy.model.parameters(), own, momentum=0.9).step()
    torch.testing.assert_close(mean.model.head.weight, summed.model.head.weight, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["sigmoid", "softmax"])
def test_icarl_starts_without_teacher_and_ends_without(form):
    strategy = ICaRL(Network(Identity(), LinearHead(4)), loss_form=form)
    strategy.grow(task(range(3), 0))
    strategy.begin(task(range(3), 0))
    x, y = torch.rand(4, 4, 1, 1), [0, 1, 2, 1]
    logits = strategy(x).tolist()
    expected = binary_by_loops(logits, y, [[]] * 4) if form == "sigmoid" else cross_entropy(logits, y)
    assert strategy.loss(x, torch.tensor(y)).item() == pytest.approx(expected, rel=1e-5)
    later, *_ = learning(ICaRL, 3, 2, loss_form=form)
    later.end(task(range(3, 5)))
    assert set(later.state_dict()) == {"model.head.weight", "model.head.bias"}


def test_finetune_compares_new_classes_with_one_another():
    strategy, x, logits, _ = learning(Finetune, 4, 3)
    y = [4, 5, 6, 6, 4, 5]
    loss = strategy.loss(x, torch.tensor(y))
    expected = cross_entropy([row[4:] for row in logits], [label - 4 for label in y])
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert not strategy.model.head.weight.grad[:4].any()
    assert not strategy.model.head.bias.grad[:4].any()
    assert strategy.model.head.weight.grad[4:].all()


def test_finetune_may_compare_all_classes():
    strategy, x, logits, _ = learning(Finetune, 4, 3, columns="all")
    y = [4, 5, 6, 6, 4, 5]
    loss = strategy.loss(x, torch.tensor(y))
    assert loss.item() == pytest.approx(cross_entropy(logits, y), rel=1e-9)
    loss.backward()
    assert strategy.model.head.weight.grad[:4].all()


# --- growing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1])
def test_an_extended_tensor_is_the_old_one_and_zeros(dim):
    old = torch.arange(6, dtype=torch.float64).view(2, 3)
    zeros = torch.zeros(2, 4, dtype=torch.float64) if dim else torch.zeros(5, 3, dtype=torch.float64)
    found = extended(old, zeros.shape[dim], dim)
    assert found.dtype == torch.float64
    assert torch.equal(found, torch.cat([old, zeros], dim))
    assert torch.equal(extended(old, 0), old)
    counts = extended(torch.empty(0, dtype=torch.int64), 3)
    assert counts.tolist() == [0, 0, 0] and counts.dtype == torch.int64
    assert extended(torch.empty(2, 3, device="meta"), 4).shape == (6, 3)


def test_planning_a_run_does_not_import_the_compiler():
    """It takes as long as importing torch, and a plan computes nothing."""
    lines = [
        "import runpy, sys",
        "sys.argv = ['tools/memory.py', 'plan', '--config', 'configs/quickstart.yaml']",
        "try: runpy.run_path(sys.argv[0], run_name='__main__')",
        "except SystemExit: pass",
        "print('compiler' if 'torch._dynamo' in sys.modules else 'none')",
    ]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "none", done.stderr
