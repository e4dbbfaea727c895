"""What a strategy may do around a step, ask of the trainer, and store beside exemplars; each against loops by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from cil.data.images import ImageSet, Joined
from cil.data.scenario import Task
from cil.experiment.experiment import Experiment, plan
from cil.experiment.run import run
from cil.learning.batch import Batch
from cil.learning.state import under
from cil.learning.strategy import Strategy
from cil.memory.exemplars import Exemplars, Memory
from cil.memory.ledger import counted, measure_run
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.ops.freezing import freeze, train_mode
from cil.ops.per_parameter import PerParameter, quadratic
from cil.testing.lab import Lab, equal_states, toy_scenario
from tests.test_trainer import Tiny, images, learner, place, trainer, weights

# --- around a step ----------------------------------------------------------------------------------------------------


class Around(Strategy):
    """Gives every parameter a gradient of 3 and notes in which order things happen."""

    def __init__(self, model):
        super().__init__(model)
        self.order, self.recording = [], []

    def loss(self, x, y):
        self.order.append("loss")
        return super().loss(x, y)

    def gradients(self, trainer):
        self.order.append("gradients")
        self.recording.append(torch.is_grad_enabled())
        self.before = [parameter.clone() for parameter in self.parameters()]
        for parameter in self.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)

    def stepped(self):
        self.order.append("stepped")
        self.recording.append(torch.is_grad_enabled())
        self.moved = [old - new for old, new in zip(self.before, self.parameters(), strict=True)]


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_step_is_taken_with_the_gradients_that_a_strategy_leaves_and_clipped_after(clip):
    strategy = learner(Around)
    trainer(epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, clip_grad=clip).descend(strategy, images(10))
    assert strategy.order == ["loss", "gradients", "stepped"] * 2
    assert not any(strategy.recording)
    n = sum(parameter.numel() for parameter in strategy.parameters())
    each = 3.0 if clip is None else clip / n**0.5
    for moved in strategy.moved:
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1 * each), rtol=1e-4, atol=1e-7)


class Scaler:
    """A scaler of float16: the second step of three overflows and is left out."""

    def __init__(self, *_, **__):
        self.scale_now, self.step_now = 8.0, 0

    def scale(self, loss):
        return loss * self.scale_now

    def unscale_(self, optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= self.scale_now

    def get_scale(self):
        return self.scale_now

    def step(self, optimizer):
        self.step_now += 1
        if self.step_now != 2:
            optimizer.step()

    def update(self):
        if self.step_now == 2:
            self.scale_now /= 2


class Notes(Strategy):
    """Notes the largest gradient, and how often the optimiser stepped."""

    def __init__(self, model):
        super().__init__(model)
        self.largest, self.steps = [], 0

    def gradients(self, trainer):
        self.largest.append(max(float(p.grad.abs().max()) for p in self.parameters()))

    def stepped(self):
        self.steps += 1


def test_gradients_come_without_a_scale_and_a_step_that_was_left_out_is_not_followed(monkeypatch):
    plain = learner(Notes)
    trainer(epochs=1, lr=0.0).descend(plain, images(15))
    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    scaled = learner(Notes)
    trainer(epochs=1, lr=0.0).descend(scaled, images(15))
    assert scaled.largest == pytest.approx(plain.largest)
    assert (plain.steps, scaled.steps) == (3, 2)


# --- a pass with gradients --------------------------------------------------------------------------------------------


def by_hand(strategy, x, y, of, size):
    """The mean over batches of ``size`` images, each counting by its images."""
    total = {name: torch.zeros_like(p) for name, p in strategy.named_parameters() if p.requires_grad}
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        strategy.zero_grad()
        F.cross_entropy(strategy(x[part]), y[part]).backward()
        for name, parameter in strategy.named_parameters():
            if name in total and parameter.grad is not None:
                total[name] += of(parameter.grad) * len(x[part]) / len(x)
    strategy.zero_grad()
    return total


@pytest.mark.parametrize("size", [1, 4, 23])
@pytest.mark.parametrize("of", [torch.square, torch.abs, torch.clone])
def test_a_pass_with_gradients_equals_loops(size, of):
    strategy, data = learner(Strategy), images(23)
    strategy.eval()
    here, before = trainer(), weights(strategy)
    found = here.gradients_of(strategy, data, of=of, images=size)
    x = here.placed().augmentation.test(data.gather())
    wanted = by_hand(strategy, x, data.labels, of, size)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-8)
        assert not found[name].requires_grad
    assert not equal_states(before, weights(strategy))
    assert all(parameter.grad is None for parameter in strategy.parameters())


def test_batches_of_a_pass_are_shuffled_by_seed_and_task():
    strategy, data = learner(Strategy), images(20)
    strategy.eval()
    squares = [
        trainer(place(task=task, seed=seed)).gradients_of(strategy, data, of=torch.square)["model.head.weight"]
        for seed, task in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(squares[0], squares[1])
    assert not torch.equal(squares[0], squares[2]) and not torch.equal(squares[0], squares[3])


def test_a_pass_leaves_out_what_is_frozen_and_takes_the_loss_that_it_is_given():
    strategy, data = learner(Strategy), images(6)
    freeze(strategy.model.backbone)
    strategy.eval()
    found = trainer().gradients_of(strategy, data, lambda x, y: strategy(x)[:, 0].mean(), images=6)
    assert set(found) == {"model.head.weight", "model.head.bias"}
    torch.testing.assert_close(found["model.head.bias"], torch.tensor([1.0, 0.0, 0.0]))


def test_a_pass_in_training_mode_moves_batch_statistics_and_one_in_eval_mode_does_not():
    for training in (False, True):
        strategy = learner(Strategy)
        strategy.eval()
        if training:
            train_mode(strategy)
        before = weights(strategy)
        trainer().gradients_of(strategy, images(10))
        changed = equal_states(before, weights(strategy))
        assert any("running_mean" in name for name in changed) == training
        assert not any("weight" in name or "bias" in name for name in changed)


def test_a_pass_is_told_and_its_cost_counted():
    where = place()
    steps = []
    where.watcher.epoch_starts = lambda stage, epoch, epochs, n: steps.append(n)
    where.watcher.step_done = lambda: steps.append("step")
    where.compute.training_flops = 0.0
    here = trainer(where)
    here.gradients_of(learner(Strategy).eval(), images(7), images=1)
    assert steps == [7, *["step"] * 7]
    assert (here.images, where.compute.images) == (7, 7)
    # Nine pixels to four features to three scores: forward once, backward once for weights, and for features.
    assert where.compute.training_flops == 7 * (2 * 9 * 4 * 2 + 2 * 4 * 3 * 3)


class Draws(Strategy):
    """Draws exemplars at each step."""

    def __init__(self, model):
        super().__init__(model)
        self.drawn = []

    def gradients(self, trainer):
        self.drawn.append(trainer.draw(30, 8).tolist())
        trainer.gradients_of(self, images(4), images=4, augment=True)


def test_exemplars_are_drawn_by_seed_epoch_and_step():
    runs = []
    for seed in (0, 0, 1):
        strategy = learner(Draws)
        trainer(place(seed=seed), epochs=2).descend(strategy, images(10))
        runs.append(strategy.drawn)
    assert runs[0] == runs[1] != runs[2]
    assert len({tuple(drawn) for drawn in runs[0]}) == 4
    assert all(len(set(drawn)) == 8 and set(drawn) <= set(range(30)) for drawn in runs[0])
    with pytest.raises(RuntimeError, match="an epoch is in progress"):
        trainer().draw(5, 2)


# --- what a batch is --------------------------------------------------------------------------------------------------


class Items(Strategy):
    """Keeps every batch; images are told apart by their first pixel, which their column repeats."""

    def __init__(self, model):
        super().__init__(model)
        self.batches = []

    def batch_loss(self, batch):
        self.batches.append(batch)
        return self.loss(batch.x, batch.y)


def tagged(n, first, column=True):
    """Images of three by three pixels whose first one is their number, and a column that repeats it."""
    pixels = np.zeros((n, 3, 3, 1), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(first, first + n)
    columns = {"number": torch.arange(first, first + n).float()[:, None]} if column else None
    return ImageSet(pixels, np.arange(n) % 3, columns=columns)


def batches_of(n_new, n_kept, *, batch_size=5, drawn=0, ordered=False):
    strategy, where = learner(Items), place(preset="none")
    where.ordered = ordered
    kept = tagged(n_kept, 100) if n_kept else None
    here = trainer(where, epochs=1, batch_size=batch_size)
    here.descend(strategy, tagged(n_new, 0, column=False), kept, drawn=drawn)
    return strategy.batches, here


@pytest.mark.parametrize("drawn", [0, 1, 2])
@pytest.mark.parametrize("n_kept", [3, 12])
def test_items_of_a_batch_are_what_they_say(drawn, n_kept):
    batches, here = batches_of(11, n_kept, drawn=drawn)
    shown = np.array([here.placed().augmentation.test(tagged(1, n).gather())[0, 0, 0, 0] for n in range(120)])
    new = []
    for batch in batches:
        numbers = [int(np.abs(shown - float(value)).argmin()) for value in batch.x[:, 0, 0, 0]]
        where = [n if n < 100 else n - 100 + 11 for n in numbers]
        assert batch.positions.tolist() == where
        assert batch.old.tolist() == [n >= 100 for n in numbers]
        column = batch.columns["number"][:, 0]
        assert torch.equal(column.isnan(), ~batch.old)
        assert column[batch.old].tolist() == [n for n in numbers if n >= 100]
        assert batch.whole == 1.0
        new += [n for n in numbers if n < 100]
        if drawn:
            n_new = int((~batch.old).sum())
            each = min(n_new, n_kept)
            assert batch.source.tolist() == [0] * n_new + [k for k in range(1, drawn + 1) for _ in range(each)]
            for k in range(1, drawn + 1):
                own = batch.positions[batch.source == k].tolist()
                assert len(set(own)) == each
        else:
            assert set(batch.source.tolist()) <= {0, 1}
    assert sorted(new) == list(range(11)), "every new image once in an epoch"
    assert not here.columns, "columns are of the stage alone"


def test_without_exemplars_a_batch_has_new_images_alone():
    for drawn in (0, 2):
        batches, _ = batches_of(10, 0, drawn=drawn)
        assert [len(batch.x) for batch in batches] == [5, 5]
        assert not any(batch.old.any() for batch in batches)
        assert all(batch.columns == {} for batch in batches)


def test_a_stream_may_draw_twice():
    batches, _ = batches_of(10, 4, drawn=2, ordered=True)
    assert [batch.positions[:5].tolist() for batch in batches] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert [batch.source.tolist() for batch in batches] == [[0] * 5 + [1] * 4 + [2] * 4] * 2


def test_the_mean_of_some_images_is_that_of_all_processes(monkeypatch):
    values, where = torch.arange(7.0), torch.tensor([True, False, True, True, False, False, True])
    nothing = torch.zeros(0, dtype=torch.int64)
    whole = Batch(torch.zeros(7, 1), nothing, nothing, nothing, {})
    mean = float(whole.mean(values, where))
    assert mean == pytest.approx(float(values[where].mean()))
    assert float(whole.mean(values, torch.zeros(7, dtype=torch.bool))) == 0.0
    monkeypatch.setattr("cil.learning.batch.distributed.sum_", lambda count: torch.full_like(count, int(where.sum())))
    parts = [slice(0, 4), slice(4, 7)]
    # The trainer weighs each share's loss by its size and averages over the processes.
    losses = [
        Batch(values, nothing, nothing, nothing, {}, 7 / n).mean(values[p], where[p]) * n / 7
        for p, n in zip(parts, (4, 3), strict=True)
    ]
    assert float(sum(losses)) == pytest.approx(mean)


# --- what lies beside exemplars ---------------------------------------------------------------------------------------


def test_columns_go_with_their_images():
    data = tagged(6, 10)
    some = data.subset([4, 1]).relabel(np.array([2, 0, 1]))
    assert some.columns["number"].flatten().tolist() == [14.0, 11.0]
    both = Joined(tagged(2, 0, column=False), data)
    assert both.columns["number"].flatten().tolist()[2:] == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
    assert both.columns["number"][:2].isnan().all()
    assert both.subset([3, 0]).columns["number"][0].item() == 11.0
    assert data.of_classes([2]).columns["number"].flatten().tolist() == [12.0, 15.0]
    with pytest.raises(ValueError, match="2 images but 3 rows of number"):
        ImageSet(np.zeros((2, 3, 3, 1), dtype=np.uint8), np.zeros(2), columns={"number": torch.zeros(3, 1)})


def describe(width):
    """Beside each image: its first pixel, in every number of a column."""
    return lambda data: {"number": torch.from_numpy(data.raw()[:, 0, 0]).float().expand(-1, width)}


@pytest.mark.parametrize("selection", ["random", "reservoir"])
@pytest.mark.parametrize("codec", ["raw", "png"])
def test_a_column_is_stored_once_and_stays_with_its_image(selection, codec, tmp_path):
    memory = Memory(exemplars=12, selection=selection, codec=codec)
    exemplars, draws = Exemplars(memory, (1, 3, 3)), torch.Generator().manual_seed(0)
    asked = []
    for index, width in enumerate((2, 4, 5)):
        data = ImageSet(tagged(20, 20 * index).raw(), np.full(20, index))
        task = Task(index, range(index, index + 1), (index,), data)
        known = {image.tobytes() for image in exemplars.images}

        def note(data, width=width, known=known):
            asked.extend(image.tobytes() in known for image in data.raw())
            return describe(width)(data)

        exemplars.update(task, lambda data: None, draws, widths={"number": width}, describe=note)
        column = exemplars.columns["number"]
        assert column.shape == (len(exemplars), width) and column.dtype == np.float32
        first = exemplars.images[:, 0, 0, 0]
        born = 2 + 2 * (first >= 20) + (first >= 40)  # the width when it was stored
        for row, value, own in zip(column, first, born, strict=True):
            assert (row[:own] == value).all() and np.isnan(row[own:]).all()
        assert measure_run(learner(Strategy), exemplars)["columns"] == 4 * column.size
        save_file(exemplars.state(), tmp_path / "exemplars.safetensors")
        again = Exemplars(memory, (1, 3, 3))
        again.load(load_file(tmp_path / "exemplars.safetensors"), exemplars.seen)
        assert not equal_states(exemplars.state(), again.state())
        exemplars = again
    assert asked and not any(asked), "an image that stayed was described again"
    data = exemplars.as_set()
    assert torch.equal(data.columns["number"][:, 0], torch.from_numpy(data.raw()[:, 0, 0, 0]).float())


def test_what_is_described_is_what_is_stored():
    exemplars = Exemplars(Memory(exemplars=4, selection="random", codec="jpeg", quality=10), (1, 3, 3))
    task = Task(0, range(1), (0,), images(9, classes=1))
    exemplars.update(task, lambda data: None, torch.Generator(), widths={"number": 1}, describe=describe(1))
    assert exemplars.columns["number"][:, 0].tolist() == exemplars.images[:, 0, 0, 0].tolist()
    stored = {image.tobytes() for image in task.train.raw()}
    assert not all(image.tobytes() in stored for image in exemplars.images), "nothing was lost by coding"


def test_columns_other_than_declared_are_refused():
    memory, task = Memory(exemplars=4, selection="random"), Task(0, range(1), (0,), images(9, 1))

    def take(exemplars, declared, given):
        exemplars.update(task, lambda d: None, torch.Generator(), widths={"number": declared}, describe=describe(given))

    with pytest.raises(RuntimeError, match=r"columns of \{'number': 2\}, and exemplar_columns says \{'number': 3\}"):
        take(Exemplars(memory, (1, 3, 3)), 3, 2)
    exemplars = Exemplars(memory, (1, 3, 3))
    take(exemplars, 3, 3)
    with pytest.raises(RuntimeError, match="number had 3 numbers, now 2"):
        take(exemplars, 2, 2)


class Wide(Strategy):
    """Stores two columns that grow with the classes."""

    def exemplar_columns(self, n_seen):
        return {"scores": n_seen, "more": 3}

    def describe(self, x):
        return {"scores": self(x), "more": x.mean((1, 2, 3), keepdim=True).flatten(1).expand(-1, 3)}


@pytest.mark.parametrize("align", ["final", "always"])
@pytest.mark.parametrize("convention", ["strict", "paper"])
def test_a_budget_counts_columns_to_the_byte(align, convention):
    lab = Lab(Wide)
    experiment = lab.experiment(epochs=(1, 1, 1))
    state = counted(experiment.limits().sizes[-1], convention)
    beside = 4 + 4 * (6 + 3) if convention == "strict" else 0
    experiment = Experiment(
        experiment.scenario,
        lab.build,
        experiment.trainer,
        Memory(exemplars=None, budget=state + 12 * (64 + beside) + 5, align=align, convention=convention),
    )
    planned, (records, _, exemplars) = plan(experiment), run(experiment)
    assert [row["bytes"] for row in planned] == [record["bytes"] for record in records]
    assert len(exemplars) == 12 - 2 + 2, "six classes of two, the smallest one whole"
    assert records[-1]["bytes"]["columns"] == 4 * 12 * 9
    assert counted(records[-1]["bytes"], convention) <= experiment.limits().budget.bytes
    tensors = under("columns", exemplars.state())
    assert sum(tensor.numel() * 4 for tensor in tensors.values()) == records[-1]["bytes"]["columns"]


def test_the_smallest_budget_that_works_has_room_for_columns():
    lab = Lab(Wide)
    experiment = lab.experiment()
    state = experiment.limits().sizes[-1]["strict"]
    enough = state + 6 * (64 + 4 + 4 * 9)
    for budget, fine in ((enough, True), (enough - 1, False)):
        own = Experiment(experiment.scenario, lab.build, experiment.trainer, Memory(exemplars=None, budget=budget))
        if fine:
            own.limits()
        else:
            with pytest.raises(ValueError, match="the smallest budget that works"):
                own.limits()


# --- once exemplars are chosen ----------------------------------------------------------------------------------------


def test_what_is_drawn_after_the_selection_depends_on_the_runs_seed_alone():
    class Draws(Strategy):
        def selected(self, task):
            drawn.append(float(torch.rand(())))

    drawn = []
    for before, data in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(before)
        run(Lab(Draws).experiment(data, (2, 4), (1, 1)))
    first, second, other = drawn[:2], drawn[2:4], drawn[4:]
    assert first == second
    assert len({*first, *other}) == 4


# --- numbers by parameter ---------------------------------------------------------------------------------------------


def test_numbers_grow_with_their_parameters_and_keep_every_bit():
    network = Network(Tiny(), LinearHead(4))
    network.head.grow(2)
    numbers = PerParameter()
    numbers.grow(network)
    assert all(torch.equal(values, torch.zeros_like(p)) for _, p, values in numbers.beside(network))
    for _, _, values in numbers.beside(network):
        values.normal_()
    before = {name: values.clone() for name, _, values in numbers.beside(network)}
    network.head.grow(3)
    numbers.grow(network)
    for name, parameter, values in numbers.beside(network):
        assert values.shape == parameter.shape
        old = before[name]
        assert torch.equal(values[tuple(map(slice, old.shape))], old)
        assert values.sum().item() == pytest.approx(old.sum().item(), rel=1e-5)  # the rest is 0
    assert torch.equal(numbers["head.weight"][:2], before["head.weight"])
    assert numbers.state_dict().keys() == {name.replace(".", "/") for name in before}


def test_a_quadratic_penalty_equals_its_sum():
    network = Network(Tiny(), LinearHead(4))
    network.head.grow(3)
    importance, anchor = PerParameter(), PerParameter()
    wanted = 0.0
    for numbers in (importance, anchor):
        numbers.grow(network)
    for name, parameter, values in importance.beside(network):
        values.uniform_()
        anchor[name].normal_()
        for w, p, a in zip(values.flatten(), parameter.flatten(), anchor[name].flatten(), strict=True):
            wanted += (w * (p - a) ** 2).item()
    assert float(quadratic(network, importance, anchor)) == pytest.approx(wanted, rel=1e-5)


def test_numbers_are_counted_as_statistics():
    class Numbers(Strategy):
        """Carries a number for each parameter."""

        def grow(self, task):
            super().grow(task)
            if task.index == 0:
                self.numbers = PerParameter()
            self.numbers.grow(self.model)

    strategy = Lab(Numbers).build()
    for task in toy_scenario().tasks:
        strategy.grow(task.without_data())
    size = measure_run(strategy, Exemplars(Memory(), (1, 8, 8)))
    assert size["statistics"] == size["parameters"] == 4 * sum(p.numel() for p in strategy.parameters())


def test_a_module_of_numbers_is_copied_with_its_strategy():
    network = Network(Tiny(), LinearHead(4))
    network.head.grow(2)
    numbers = PerParameter()
    numbers.grow(network)
    again = copy.deepcopy(nn.ModuleList([network, numbers]))
    again[1]["head.weight"].fill_(1.0)
    assert not numbers["head.weight"].any()


def test_numbers_that_were_copied_with_their_gradient_are_refused():
    strategy = learner(Strategy)
    strategy.numbers = PerParameter()
    strategy.numbers.grow(strategy.model)
    for _, parameter, values in strategy.numbers.beside(strategy.model):
        values.copy_(parameter)
    with pytest.raises(RuntimeError, match=r"copy into it under torch\.no_grad"):
        trainer().descend(strategy, images())
