"""The only gradient loop.

::

    descend(strategy, data, replay)
        optimiser = fresh, over strategy.parameter_groups()
        for each epoch:                                        run_epoch
            learning rate from the schedule
            for each batch of data + replay, shuffled; on a stream, of data in order, each with exemplars drawn anew:
                x = augment(images)                            with several processes, of each one's share of the batch
                loss = strategy.batch_loss(x, y, ...)          train_step
                backward, strategy.gradients(), clip, step, strategy.stepped()
            report, look whether it is the best epoch, checkpoint
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from cil.data.images import FeatureSet, ImageSet, Joined, OnDevice, gathered, moved, near
from cil.data.seeds import generator, seeded
from cil.errors import UserError, unknown
from cil.learning.batch import Batch
from cil.learning.best import TOLD, Best
from cil.learning.inference import batch_size, passes
from cil.learning.learner import Learner, learner
from cil.learning.place import Place
from cil.learning.state import size, state_bytes
from cil.learning.strategy import Strategy
from cil.machine import distributed
from cil.machine.compute import Flops
from cil.ops.freezing import train_mode

# What trainer.per_task may set, and which values are legal.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (lambda v: type(v) is int and v >= 1, "an integer >= 1"),
    "batch_size": (lambda v: type(v) is int and v >= 2, "an integer >= 2"),
    "optimizer": (lambda v: v in ("sgd", "adamw"), "sgd or adamw"),
    "lr": (lambda v: 0 < v < math.inf, "> 0"),
    "momentum": (lambda v: 0 <= v < 1, "within [0, 1)"),
    "nesterov": (lambda v: isinstance(v, bool), "true or false"),
    "weight_decay": (lambda v: 0 <= v < math.inf, ">= 0"),
    "schedule": (lambda v: v in ("multistep", "cosine", "constant"), "multistep, cosine or constant"),
    "milestones": (lambda v: not v or all(0 < m < math.inf for m in v), "a list of numbers > 0"),
    "gamma": (lambda v: 0 < v < math.inf, "> 0"),
    "min_lr": (lambda v: 0 <= v < math.inf, ">= 0"),
    "warmup_epochs": (lambda v: type(v) is int and v >= 0, "an integer >= 0"),
    "clip_grad": (lambda v: v is None or 0 < v < math.inf, "> 0 or null"),
    "label_smoothing": (lambda v: 0 <= v < 1, "within [0, 1)"),
    "steps_per_batch": (lambda v: type(v) is int and v >= 1, "an integer >= 1"),
    "select_on": (lambda v: v in TOLD, "last, validation or test"),
    "validation_share": (lambda v: 0 < v < 1, "within (0, 1)"),
}
# Those of which a stage may have its own: the others are decided for a task.
OF_A_STAGE = RULES.keys() - {"select_on", "validation_share", "steps_per_batch"}
# What a stream, whose images are seen once, allows, and why.
ON_STREAM: dict[str, tuple[Any, str]] = {
    "epochs": (1, "its images are seen once; trainer.steps_per_batch makes more steps on each batch"),
    "warmup_epochs": (0, "with one epoch for each piece the rate would never leave the warm-up"),
    "select_on": ("last", "there is one epoch"),
}
LOOK = 50  # steps after which losses are read where reading waits for a GPU or for other processes


class DivergedError(RuntimeError):
    """The loss became NaN or infinite; the message says where."""


class Trainer:
    """Stochastic gradient descent: how long, how fast, with what optimiser.

    Args:
        epochs: passes over a task's data and exemplars; 1 on a stream without boundaries.
        batch_size: images in a step.
        optimizer: ``sgd`` or ``adamw``.
        lr: learning rate.
        momentum: of SGD.
        nesterov: whether SGD looks ahead.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        schedule: ``multistep`` (times ``gamma`` at each milestone), ``cosine`` (to ``min_lr``) or ``constant``.
        milestones: epochs after which a multistep schedule decays; values below 1 are fractions of ``epochs``.
        gamma: factor of a multistep schedule.
        min_lr: where a cosine schedule ends.
        warmup_epochs: epochs in which the rate rises linearly from lr / (warmup_epochs + 1), before the schedule's own.
        clip_grad: largest norm of the gradient; null does not clip.
        label_smoothing: of the cross-entropy, within [0, 1).
        steps_per_batch: gradient steps on each batch of a stream without boundaries, each with its own augmentation and
            exemplars; 3 in the released code of Si-Blurry. Elsewhere 1.
        select_on: which epoch of a stage is kept: the ``last``; that with the best accuracy on ``validation`` images,
            which are held out of the training images; or on ``test`` images, as several released programs do, which
            makes the result an oracle's and is said wherever it is shown.
        validation_share: of the images of each class, held out where ``select_on`` is validation.
        per_task: other values of these options for single tasks, by index: ``{0: {epochs: 200, weight_decay: 5e-4}}``.
    """

    def __init__(
        self,
        *,
        epochs: int = 170,
        batch_size: int = 128,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 2e-4,
        schedule: Literal["multistep", "cosine", "constant"] = "multistep",
        milestones: list[float] | None = None,
        gamma: float = 0.1,
        min_lr: float = 0.0,
        warmup_epochs: int = 0,
        clip_grad: float | None = None,
        label_smoothing: float = 0.0,
        steps_per_batch: int = 1,
        select_on: Literal["last", "validation", "test"] = "last",
        validation_share: float = 0.1,
        per_task: dict[int, dict[str, Any]] | None = None,
    ) -> None:
        self.epochs, self.batch_size, self.optimizer, self.lr = epochs, batch_size, optimizer, lr
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.schedule, self.milestones, self.gamma, self.min_lr = schedule, milestones, gamma, min_lr
        self.warmup_epochs, self.clip_grad, self.label_smoothing = warmup_epochs, clip_grad, label_smoothing
        self.steps_per_batch, self.per_task = steps_per_batch, per_task
        self.select_on, self.validation_share = select_on, validation_share
        self.place: Place | None = None

    def check(self, n_tasks: int, pieces: Collection[int] = ()) -> None:
        """Refuse values that cannot be meant, before any training.

        Args:
            n_tasks: number of tasks of the scenario.
            pieces: indices of those that are pieces of a stream without boundaries.

        Raises:
            UserError: names the option, its value and what is legal.
        """
        for index, options in (self.per_task or {}).items():
            if not isinstance(index, int) or not 0 <= index < n_tasks:
                raise UserError(
                    f"trainer.per_task: there is no task of index {index}; the scenario has 0 to {n_tasks - 1}"
                )
            for key in options:
                if key not in RULES:
                    raise unknown(f"trainer.per_task.{index}", key, RULES)
        for index in range(n_tasks):
            chosen = self.of_task(index)
            for key, (legal, text) in RULES.items():
                value = getattr(chosen, key)
                try:
                    fine = legal(value)
                except TypeError:
                    fine = False
                if not fine:
                    raise UserError(f"trainer.{key}: {value!r} for task {index} must be {text}")
            if index not in pieces and chosen.warmup_epochs >= chosen.epochs:
                raise UserError(
                    f"trainer.warmup_epochs: {chosen.warmup_epochs} for task {index} must be less than trainer.epochs, "
                    f"{chosen.epochs}, or the rate would never leave the warm-up"
                )
            if chosen.nesterov and not chosen.momentum:
                raise UserError("trainer.nesterov needs trainer.momentum > 0")
            for key, (only, reason) in ON_STREAM.items() if index in pieces else ():
                if getattr(chosen, key) != only:
                    raise UserError(
                        f"trainer.{key}: {getattr(chosen, key)} on a stream without boundaries must be {only}: {reason}"
                    )
            if index not in pieces and chosen.steps_per_batch != 1:
                raise UserError(
                    f"trainer.steps_per_batch: {chosen.steps_per_batch} is for streams without boundaries; task "
                    f"{index} is passed trainer.epochs times, so give 1"
                )

    def of_task(self, index: int) -> Trainer:
        """This trainer with the options of one task."""
        other = copy.copy(self)
        for key, value in (self.per_task or {}).get(index, {}).items():
            setattr(other, key, value)
        return other

    def at(self, place: Place) -> Trainer:
        """This trainer for one task: its options of that task, at that place, with nothing counted yet."""
        bound = self.of_task(place.task)
        bound.place, bound.stage, bound.images, bound.seconds = place, 0, 0, 0.0
        bound.peak_state = bound.peak_optimizer = bound.peak_best = 0
        return bound

    stage: int = 0  # calls of descend so far in this task
    n_new: int = 0  # images of this stage that are no exemplars
    drawn: int = 0  # draws of exemplars that join each batch of new images in this stage; 0: they are shuffled together
    columns: Mapping[str, Tensor] = MappingProxyType({})  # beside the images of this stage, NaN beside new ones
    asked: bool = False  # whether the strategy asks where images come from
    draws: torch.Generator | None = None  # of the epoch in progress, the same in every process
    images: int = 0  # images trained on so far in this task, by this process
    seconds: float = 0.0  # time in descend so far in this task, by this process
    flops_per_image: float | None = None  # of a gradient step of this stage, measured on its first batch
    scaler: torch.amp.GradScaler  # of losses in float16
    peak_state: int = 0  # bytes of the strategy as it learns, teachers included: the most of all stages of this task
    peak_optimizer: int = 0  # bytes of the optimiser's state, likewise
    peak_best: int = 0  # bytes of the copy of the best epoch, likewise

    def share(self, part: float) -> int:
        """Epochs of a stage that takes this part of the trainer's own, rounded up to at least one."""
        return max(1, math.ceil(round(part * self.epochs, 6)))

    def descend(
        self,
        strategy: Strategy,
        data: ImageSet | FeatureSet,
        replay: ImageSet | None = None,
        *,
        epochs: int | None = None,
        drawn: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Minimise the strategy's loss over new data and exemplars, shuffled together, for ``epochs`` passes.

        On a stream there is one pass over the new data in their order, and each batch is joined by as many exemplars.

        Args:
            strategy: what learns; its ``loss`` is minimised over its ``parameter_groups``.
            data: new images, or features that the strategy has computed.
            replay: exemplars, or None; not beside features.
            epochs: passes of this stage; cosine schedules, and milestones that are fractions, stretch over them.
                None: the trainer's own.
            drawn: 0 shuffles exemplars among the new images, so that each is seen once in a pass; n draws exemplars for
                each batch of new images, n times as many as it has, each draw uniform. A stream draws at least once.
            options: other values of the trainer's options for this stage alone, such as ``{"weight_decay": 0.0}``.

        Raises:
            DivergedError: the loss is NaN or infinite; names task, epoch and step.
            RuntimeError: the trainer was not given a place by ``at``, a stream is to be passed more than once, or a
                buffer requires a gradient.
            UserError: there is no such option, or a stage has none of its own.
        """
        place = self.placed()
        chosen = {**(options or {}), **({} if epochs is None else {"epochs": epochs})}
        for key in chosen:
            if key not in OF_A_STAGE:
                raise unknown("trainer", key, OF_A_STAGE)
        for name, buffer in strategy.named_buffers():
            if buffer.requires_grad:
                raise RuntimeError(f"{name} is a buffer that requires a gradient: copy into it under torch.no_grad()")
        both = data
        if replay is not None and len(replay):
            if isinstance(data, FeatureSet):
                raise ValueError("exemplars are images and cannot be mixed with features")
            both = Joined(data, replay)
        stage, self.stage, self.n_new = self.stage, self.stage + 1, len(data)
        self.drawn = max(drawn, int(place.ordered))
        self.columns = {} if isinstance(both, FeatureSet) else both.columns
        self.asked = type(strategy).batch_loss is not Strategy.batch_loss
        read = both if isinstance(both, FeatureSet) or place.ordered else near(both, place.device)
        whole = {key: getattr(self, key) for key in chosen}
        vars(self).update(chosen)
        optimizer = self.make_optimizer(strategy)
        self.flops_per_image, self.scaler = None, torch.amp.GradScaler("cuda", enabled=place.precision == "16-mixed")
        strategy.label_smoothing = self.label_smoothing
        begin = time.perf_counter()
        best = Best(place.judge) if place.judge else None
        try:
            if place.ordered and self.epochs != 1:
                raise RuntimeError(f"{self.epochs} passes over a stream, whose images are seen once")
            first = place.watcher.restore(stage, strategy, optimizer, best)
            with learner(strategy, place.compile) as learning:
                for epoch in range(first, self.epochs):
                    loss = self.run_epoch(learning, read, optimizer, stage, epoch)
                    place.watcher.epoch_done(stage, epoch, self.epochs, loss, optimizer.param_groups[0]["lr"])
                    if best:
                        with place.compute.phase("evaluation"):
                            best.look(strategy)
                        if epoch + 1 == self.epochs:
                            best.take(strategy)
                    with place.compute.phase("checkpoint"):
                        place.watcher.save(stage, epoch, self.epochs, strategy, optimizer, best)
            self.peak_state = max(self.peak_state, state_bytes(strategy))
            tensors = [value for state in optimizer.state.values() for value in state.values()]
            self.peak_optimizer = max(self.peak_optimizer, sum(size(t) for t in tensors if isinstance(t, Tensor)))
            if best:
                self.peak_best = max(self.peak_best, sum(map(size, strategy.state_dict().values())))
        finally:
            vars(self).update(whole)
            self.draws, self.columns = None, {}
            del strategy.label_smoothing  # the class default again
            optimizer.zero_grad(set_to_none=True)
            strategy.eval()
            self.seconds += time.perf_counter() - begin

    @torch.no_grad()
    def extract(self, strategy: Strategy, data: ImageSet) -> tuple[Tensor, Tensor]:
        """Features of images as they are tested, without augmentation, in their order, and their labels.

        With several processes, of each process's own share.

        Args:
            strategy: whose ``features`` are computed, in eval mode.
            data: new images.

        Returns:
            float32 (N, D) and int64 (N,), on the run's device.
        """
        place, begin = self.placed(), time.perf_counter()
        own = distributed.own(data)
        place.watcher.epoch_starts(self.stage, 0, 1, math.ceil(len(own) / batch_size(place)))
        parts = []
        counted = Flops()
        found = passes(strategy, own or data.subset([0]), place, need_scores=False, count=counted)
        first, _ = next(found)
        place.compute.training_flops += counted.total / len(first) * len(data)
        for features in (first, *(features for features, _ in found)):
            parts.append(features[: len(own)])
            place.watcher.step_done()
        self.images += len(own)
        self.seconds += time.perf_counter() - begin
        return torch.cat(parts), own.labels.to(place.device)

    @torch.no_grad()
    def gradients_of(
        self,
        strategy: Strategy,
        data: ImageSet,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        of: Callable[[Tensor], Tensor] | None = None,
        images: int | None = None,
        augment: bool = False,
    ) -> dict[str, Tensor]:
        """The mean of what ``of`` makes of the gradients of some images, by parameter; nothing learns.

        The strategy is in whatever mode it is in: batch statistics move in training mode. With several processes each
        one computes a share, and all get the whole mean.

        Args:
            strategy: of whose parameters, those that require a gradient.
            data: the images, at least one.
            loss: mean of some images, (B, C, H, W), (B,) -> (); the strategy's own if none is given.
            of: of each gradient, such as ``torch.square``; the gradient itself if nothing is given.
            images: whose mean loss has one gradient: 1, each image its own; None: those of a batch, shuffled.
            augment: the images as they are learned; otherwise as they are tested.

        Returns:
            {name: as the parameter}, each batch counting by its images; 0 where a parameter takes no part.
        """
        place, outside, begin = self.placed(), self.draws is None, time.perf_counter()
        draws = self.draws or generator(place.seed, "gradients", place.task, self.stage)
        loss, of, n = loss or strategy.loss, of or torch.clone, len(data)
        named = {name: parameter for name, parameter in strategy.named_parameters() if parameter.requires_grad}
        totals = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        batches = self.shuffled(n, draws) if images is None else list(torch.arange(n).split(images))
        whole = images == 1  # images are shared out, not parts of an image
        if whole:
            batches = batches[distributed.share(n)]
        if outside:
            place.watcher.epoch_starts(self.stage, 0, 1, len(batches))
        # Without the scale that half precision needs, small gradients would vanish in it.
        precise = contextlib.nullcontext() if place.precision == "16-mixed" else place.autocast()
        per_image = 0.0
        for index in batches:
            part, weight = (slice(1), 1.0) if whole else _part(len(index))
            with contextlib.nullcontext(Flops()) if per_image else Flops() as counted:
                x = self.prepared(data.gather(index[part]), draws if augment else None, len(index), part)
                with torch.enable_grad(), precise:
                    mean = loss(x, moved(data.labels[index[part]], place.device)) * weight
                found = torch.autograd.grad(mean, list(named.values()), allow_unused=True)
            per_image = per_image or counted.total / len(x)
            for total, gradient in zip(totals.values(), found, strict=True):
                gradient = torch.zeros_like(total) if gradient is None else gradient
                if not whole:
                    gradient = distributed.sum_(gradient) / distributed.world_size()
                total += of(gradient) * (len(index) / n)
            if outside:
                place.watcher.step_done()
        for total in totals.values():
            if whole:
                distributed.sum_(total)
        if outside:  # within a step its time and operations are the step's
            self.images += n
            self.seconds += time.perf_counter() - begin
            place.compute.images += n
            place.compute.training_flops += per_image * n
        return totals

    def draw(self, n: int, size: int) -> Tensor:
        """``size`` of n positions, or all of fewer, drawn within an epoch: int64, the same in every process.

        Raises:
            RuntimeError: no epoch is in progress.
        """
        if self.draws is None:
            raise RuntimeError("exemplars are drawn while an epoch is in progress")
        return torch.randperm(n, generator=self.draws)[:size]

    def run_epoch(
        self,
        learner: Learner,
        data: ImageSet | OnDevice | FeatureSet,
        optimizer: Optimizer,
        stage: int,
        epoch: int,
    ) -> float:
        """One pass over the data; the mean loss of its steps. Its draws depend on seed, task, stage and epoch alone."""
        place = self.placed()
        scale = self.lr_scale(epoch)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale if self.schedule != "cosine" else self._cosine(group, epoch)
        self.draws = draws = generator(place.seed, "batches", place.task, stage, epoch)
        batches = self.batches(len(data), draws)
        place.watcher.epoch_starts(stage, epoch, self.epochs, len(batches))
        train_mode(learner.strategy)
        losses = torch.zeros(len(batches), device=place.device)
        look = 1 if place.device.type == "cpu" and distributed.world_size() == 1 else LOOK
        # Each process draws for its own images, the first one as a single one would.
        own = () if distributed.is_first() else (distributed.rank(),)
        with seeded(place.seed, "network", place.task, stage, epoch, *own):
            read = gathered(data, [index[_part(len(index))[0]] for index in batches])
            for step, index in enumerate(batches):
                with place.compute.phase("data"):
                    batch, weight = self.batch(next(read), data.labels, index, draws)
                if self.flops_per_image is None:
                    with Flops() as counted:
                        losses[step] = self.train_step(learner, batch, weight, optimizer)
                    self.flops_per_image = counted.total / len(batch.x)
                else:
                    losses[step] = self.train_step(learner, batch, weight, optimizer)
                if (step + 1) % look == 0 or step + 1 == len(batches):
                    self._refuse_divergence(losses, step // look * look, step + 1, epoch)
                self.images += len(index)
                place.compute.images += len(index)
                place.compute.training_flops += self.flops_per_image * len(index)
                place.watcher.step_done()
        return float(losses.double().mean())

    def batches(self, n: int, draws: torch.Generator) -> list[Tensor]:
        """Which images each step of an epoch sees: positions among the n of a stage, one (B,) int64 for each step.

        Args:
            n: new images, followed by exemplars.
            draws: of the order.
        """
        if not self.drawn:
            return self.shuffled(n, draws)
        if self.placed().ordered:
            new, steps = list(split_batches(torch.arange(self.n_new), self.batch_size)), self.steps_per_batch
        else:
            new, steps = self.shuffled(self.n_new, draws), 1
        return list(with_exemplars(new, self.n_new, n - self.n_new, self.drawn, steps, draws))

    def shuffled(self, n: int, draws: torch.Generator) -> list[Tensor]:
        """Batches of n images, each in one of them."""
        return list(split_batches(torch.randperm(n, generator=draws), self.batch_size))

    def batch(self, read: Tensor, labels: Tensor, index: Tensor, draws: torch.Generator) -> tuple[Batch, float]:
        """This process's part of a batch, augmented, and the weight of its mean loss.

        Weighted, the means of all processes average to the mean over the whole batch.

        Args:
            read: the images of this process's part, uint8, or features, which are not augmented.
            labels: of all images.
            index: the whole batch.
            draws: of augmentation.
        """
        device, (part, weight) = self.placed().device, _part(len(index))
        x, own = self.prepared(read, draws, len(index), part), index[part]
        y, source, beside = moved(labels[own], device), sources(index, self.n_new, self.drawn)[part], {}
        if self.asked:
            beside = {name: moved(column[own], device) for name, column in self.columns.items()}
            own, source = moved(own, device), moved(source, device)
        whole = distributed.world_size() / weight if weight else 0.0
        return Batch(x, y, own, source, beside, whole), weight

    def prepared(self, read: Tensor, draws: torch.Generator | None, of: int, part: slice) -> Tensor:
        """Images or features on the run's device, in its type.

        Args:
            read: uint8 (B, C, H, W), or features, which are not augmented.
            draws: of augmentation; None: images as they are tested.
            of: images in the whole batch.
            part: which of them these are.
        """
        place = self.placed()
        x = moved(read, place.device)
        if x.dtype == torch.uint8:
            view = place.augmentation
            x = view.test(x) if draws is None else view.train(x, draws, of=of, part=part)
        return x.to(place.dtype)

    def _refuse_divergence(self, losses: Tensor, start: int, stop: int, epoch: int) -> None:
        """Read the losses of these steps, add up those of all processes, and stop if one of them is no number."""
        some = distributed.sum_(losses[start:stop])
        wrong = torch.nonzero(~torch.isfinite(some)).flatten()
        if len(wrong):
            place, step = self.placed(), int(wrong[0])
            raise DivergedError(
                f"the loss is {some[step].item()} in task {place.task + 1} (index {place.task}), "
                f"epoch {epoch + 1} of {self.epochs}, step {start + step + 1} of {len(losses)}. "
                "A smaller trainer.lr or a trainer.clip_grad may help."
            )

    def train_step(self, learner: Learner, batch: Batch, weight: float, optimizer: Optimizer) -> Tensor:
        """One step on a share of a batch; its part of the loss before it, detached, ()."""
        strategy = learner.strategy
        with self.placed().autocast():
            loss = learner.loss(batch)
        if weight != 1:
            loss = loss * weight
        optimizer.zero_grad(set_to_none=True)
        learner.backward(self.scaler.scale(loss))
        if self.clip_grad is not None or type(strategy).gradients is not Strategy.gradients:
            self.scaler.unscale_(optimizer)
        with torch.no_grad():
            strategy.gradients(self)
        if self.clip_grad is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_grad)
        followed = type(strategy).stepped is not Strategy.stepped
        scale = self.scaler.get_scale() if followed else 1.0
        self.scaler.step(optimizer)
        self.scaler.update()
        if followed and self.scaler.get_scale() >= scale:  # one that falls tells of a step that was left out
            with torch.no_grad():
                strategy.stepped()
        return loss.detach() / distributed.world_size()

    def make_optimizer(self, strategy: Strategy) -> Optimizer:
        """A fresh optimiser over the strategy's groups, so that nothing that grew needs surgery."""
        groups = strategy.parameter_groups()
        optimizer: Optimizer
        # All tensors in one call, on processors as on GPUs: the same bits as one by one, with less around them.
        if self.optimizer == "sgd":
            optimizer = SGD(groups, self.lr, self.momentum, 0.0, self.weight_decay, self.nesterov, foreach=True)
        else:
            optimizer = AdamW(groups, self.lr, weight_decay=self.weight_decay, foreach=True)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def lr_scale(self, epoch: int) -> float:
        """Learning rate of an epoch as a fraction of its start: warm-up, then multistep or constant."""
        if epoch < self.warmup_epochs:
            return (epoch + 1) / (self.warmup_epochs + 1)
        if self.schedule == "multistep":
            passed = [m for m in self.milestones or [] if epoch >= (round(m * self.epochs, 6) if m < 1 else m)]
            return self.gamma ** len(passed)
        return 1.0

    def _cosine(self, group: dict[str, Any], epoch: int) -> float:
        """Loshchilov and Hutter, SGDR, ICLR 2017, eq. 5, without restarts; by epoch."""
        if epoch < self.warmup_epochs:
            return group["initial_lr"] * self.lr_scale(epoch)
        done = (epoch - self.warmup_epochs) / max(1, self.epochs - self.warmup_epochs)
        low = min(self.min_lr, group["initial_lr"])  # a group that starts lower, such as a frozen one at 0, stays there
        return low + (group["initial_lr"] - low) * (1 + math.cos(math.pi * done)) / 2

    def placed(self) -> Place:
        """Where this trainer works.

        Raises:
            RuntimeError: it was not given a place by ``at``.
        """
        if self.place is None:
            raise RuntimeError("a trainer works for one task: trainer.at(place)")
        return self.place


def _part(n: int) -> tuple[slice, float]:
    """Which of a batch's n images this process takes, and the weight of their mean loss.

    A process whose share is empty takes an image with weight 0.
    """
    part = distributed.share(n)
    weight = (part.stop - part.start) * distributed.world_size() / n
    return (part, weight) if weight else (slice(0, 1), 0.0)


def split_batches(order: Tensor, size: int) -> Iterator[Tensor]:
    """Cut an order (N,) into batches; a last batch of one image, which has no statistics, joins the one before."""
    stops = list(range(size, len(order), size))
    if stops and len(order) - stops[-1] == 1:
        stops.pop()
    start = 0
    for stop in [*stops, len(order)]:
        yield order[start:stop]
        start = stop


def sources(index: Tensor, n_new: int, drawn: int) -> Tensor:
    """Where the images of a batch come from: 0 for new ones, k for exemplars of the k-th draw: (B,) -> (B,) int64.

    Args:
        index: positions; those of exemplars are n_new and more.
        n_new: new images.
        drawn: draws, which are equally long and stand behind the new images; 0: exemplars stand anywhere, as one draw.
    """
    old = (index >= n_new).long()
    n_old = int(old.sum())
    if not drawn or not n_old:
        return old
    behind = torch.arange(len(index)) - (len(index) - n_old)
    return old * (1 + behind.div(n_old // drawn, rounding_mode="floor"))


def with_exemplars(
    new: Iterable[Tensor], n_new: int, n_kept: int, drawn: int, steps: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Experience replay: batches of new images, each joined by as many exemplars drawn uniformly.

    Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019. Exemplars are drawn without replacement
    within a draw, all of them where there are fewer than new images, and anew for each draw and each step.

    Args:
        new: batches of new images, positions in 0 to n_new - 1.
        n_new: new images.
        n_kept: exemplars, at the positions that follow.
        drawn: draws that join each batch.
        steps: batches with the same new images.
        generator: of the draws.

    Yields:
        Positions, (B,) int64, the new images first.
    """
    for batch in new:
        for _ in range(steps):
            kept = [torch.randperm(n_kept, generator=generator)[: len(batch)] for _ in range(drawn)]
            yield torch.cat([batch, *(n_new + positions for positions in kept)])
