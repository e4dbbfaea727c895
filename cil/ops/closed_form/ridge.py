"""Ridge regression learned in pieces: the same weights as from all data at once, whatever the pieces.

    W = argmin ||Y - X W||^2 + gamma ||W||^2 = (A + gamma I)^-1 Q,   A = X^T X,   Q = X^T Y,   no intercept

Zhuang et al., ACIL: Analytic Class-Incremental Learning with Absolute Memorization and Privacy Protection, NeurIPS
2022, carries R = (A + gamma I)^-1 and updates it by the Woodbury identity for each batch (``recursive``); McDonnell et
al., RanPAC, NeurIPS 2023, adds up A and solves once (``accumulated``). Both give the same W; what is cheaper depends on
the number of samples between two solutions. With M columns and n samples, the first takes about 4 n M^2 operations, the
second n M^2 + M^3 / 3.

Letters: N samples, M columns of X (the width), K columns of Y (classes).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from cil.errors import UserError
from cil.machine import distributed
from cil.ops.closed_form.statistics import Statistics, add_gram_, mirror_, pack, packed_size, symmetric_product, unpack
from cil.ops.growing import extended

# Makes the samples of one piece, as often as it is called: pairs (n, M), (n, K), X in float32 or float64.
Samples = Callable[[torch.dtype], Iterable[tuple[Tensor, Tensor]]]
SOME = 256  # samples on which the rounding of products is measured
PRECISIONS = {  # of products, tried in this order
    "auto": (torch.float32, torch.float64),
    "float32": (torch.float32,),
    "float64": (torch.float64,),
}
WORST = 1e13  # a condition number beyond which float64 keeps fewer than three digits
TOLERANCE = {"auto": 1e-5, "float32": 1e-4}  # largest relative change of W by all products in float32


class Ridge(Statistics):
    """The weights of a ridge regression and what is needed to go on learning them.

    Carried: ``weight`` (M, K); ``matrix``, which is A, or R after the form became recursive (``inverse`` says which);
    ``gamma``; and ``rounded``, the square of the relative change of W by rounding so far, with the piece at which it
    became too much. Q is not carried: it is (A + gamma I) W. All are float64.

    Args:
        width: M.
        gamma: the penalty, > 0; it makes up for directions without data.
        storage: ``packed`` carries the lower triangle of the matrix, M (M + 1) / 2 numbers; ``full`` all M * M.
        solver: ``accumulated``, ``recursive``, or ``auto``, the cheaper one.
        products: ``float64``; ``float32`` for the products of samples alone, added up in float64, which is faster;
            ``auto``: float32, and float64 from the piece on with which rounding would have changed W by more
            than 1e-5 (relative).
    """

    head_buffers = ("weight",)
    matrix: Tensor
    weight: Tensor
    inverse: Tensor
    gamma: Tensor
    rounded: Tensor

    def __init__(
        self,
        width: int,
        gamma: float,
        *,
        storage: Literal["packed", "full"] = "packed",
        solver: Literal["auto", "accumulated", "recursive"] = "auto",
        products: Literal["auto", "float32", "float64"] = "auto",
    ) -> None:
        super().__init__()
        self.width, self.storage = width, storage
        self.solver, self.products = solver, products
        shape = (packed_size(width),) if storage == "packed" else (width, width)
        self.register_buffer("matrix", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(width, 0, dtype=torch.float64))
        self.register_buffer("gamma", torch.tensor(gamma, dtype=torch.float64))
        self.register_buffer("inverse", torch.tensor(False))
        self.register_buffer("rounded", torch.zeros((), dtype=torch.float64))

    def grow(self, n_new: int) -> None:
        """Append columns of zeros for new classes."""
        self.weight = extended(self.weight, n_new, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores X W in float64: (N, M) -> (N, K)."""
        return x.double() @ self.weight

    def learn(self, samples: Samples, n: int, *, gamma: float | Sequence[float] | None = None) -> None:
        """Take in one piece of the data; W is then that of all pieces so far.

        Args:
            samples: makes (X, Y) in chunks, X (n', M) in the precision that it is called with, Y (n', K) real targets.
                With several processes, each one's own share.
            n: samples in the piece, over all processes: decides what is cheaper.
            gamma: the penalty from now on, for all samples; of several, the first with which the equations can be
                solved; None: as before. A recursion cannot change it.

        Raises:
            UserError: a sample is not finite, or the equations cannot be solved with this gamma, or any of them.
        """
        if self._recursive(n):
            assert gamma is None, "the recursion has its gamma inside R"
            self._update(samples)
        else:
            gamma = float(self.gamma) if gamma is None else gamma
            self._accumulate(samples, gamma if isinstance(gamma, Sequence) else [gamma])

    def drop(self, classes: Sequence[int]) -> None:
        """Make the weights of these classes 0, which is their solution without their labels; A keeps their images."""
        self.weight[:, list(classes)] = 0

    def unlearn(self, x: Tensor, labels: Tensor) -> None:
        """Take samples out again: W is then that of the others alone, up to rounding.

        Args:
            x: (n, M), samples that were learned with one-hot labels.
            labels: (n,)

        Raises:
            UserError: the equations cannot be solved without them, since they had not been learned.
        """
        x, gamma = x.double(), float(self.gamma)
        matrix = self.information()
        target = matrix @ self.weight + gamma * self.weight  # Q
        target -= x.T @ torch.nn.functional.one_hot(labels, self.weight.shape[1]).double()
        matrix -= x.T @ x
        try:
            factor = cholesky(matrix, gamma)
        except UserError as error:
            raise UserError(
                "images: they cannot be taken out of the regression, for it has not learned all of them as they are "
                "given"
            ) from error
        self.weight = solve(factor, target)
        self._keep(torch.cholesky_inverse(factor) if self.inverse else matrix)

    def information(self) -> Tensor:
        """A = X^T X of all samples so far, (M, M)."""
        if not self.inverse:
            return mirror_(self._lower())
        found = torch.cholesky_inverse(cholesky(self._lower(), 0.0))
        found.diagonal().sub_(self.gamma)
        return found

    def _lower(self) -> Tensor:
        return unpack(self.matrix) if self.storage == "packed" else self.matrix.tril()

    def _keep(self, matrix: Tensor) -> None:
        self.matrix = pack(matrix) if self.storage == "packed" else mirror_(matrix)

    # --- which form -------------------------------------------------------------------------------------------------

    def _recursive(self, n: int) -> bool:
        """Whether to update R for this piece; makes R of A when that has become cheaper."""
        if self.solver == "recursive" and distributed.world_size() > 1:
            raise UserError("solver: recursive updates cannot be shared by processes; legal: auto, accumulated")
        if not self.inverse:
            # Converting costs M^3 once; with pieces this small it has paid after six of them.
            cheaper = 12 * n < self.width and distributed.world_size() == 1
            if self.solver == "recursive" or (self.solver == "auto" and cheaper):
                self._keep(torch.cholesky_inverse(cholesky(self._lower(), float(self.gamma))))
                self.inverse = torch.tensor(True, device=self.inverse.device)
        return bool(self.inverse)

    # --- accumulated ------------------------------------------------------------------------------------------------

    def _accumulate(self, samples: Samples, gammas: Sequence[float]) -> None:
        before = self._lower()
        target, old = torch.zeros_like(self.weight), self.weight.any(0)  # columns of new classes are 0
        known = self.weight[:, old]
        target[:, old] = symmetric_product(before, known) + self.gamma * known  # Q of the samples before, (M, K)
        rounded, tolerance = self.rounded, TOLERANCE.get(self.products, 1.0)
        precisions = PRECISIONS[self.products] if rounded.sqrt() <= tolerance else PRECISIONS[self.products][-1:]
        for precise in precisions:
            last = precise is precisions[-1]
            try:  # rounding alone may make equations unsolvable, so the next precision comes before the next gamma
                matrix, factor, gamma, weight, first, times = self._solved(
                    before if last else before.clone(), target, samples, precise, gammas if last else gammas[:1]
                )
            except UserError:
                if last:
                    raise
                rounded = rounded + 1
                continue
            squared = torch.zeros_like(rounded)
            if first is not None and precise is torch.float32:
                squared += (rounding(factor, weight, first) * times) ** 2
            rounded = rounded + distributed.sum_(squared)
            if precise is torch.float64 or rounded.sqrt() <= tolerance:
                break
        else:
            raise UserError(
                f"gamma: {gamma:g} is too small for products in float32: rounding them changes the weights "
                f"by {float(rounded.sqrt()):.1e} (relative); use a larger gamma, or products: auto or float64"
            )
        self._keep(matrix)
        self.weight, self.gamma, self.rounded = weight, torch.full_like(self.gamma, gamma), rounded

    def _solved(
        self, matrix: Tensor, target: Tensor, samples: Samples, precise: torch.dtype, gammas: Sequence[float]
    ) -> tuple[Tensor, Tensor, float, Tensor, Tensor | None, float]:
        """With this piece: A (lower triangle), its factor, gamma, W; some of X, and how much more the whole errs.

        ``matrix``, A before, is changed in place.
        """
        alone = distributed.rank() == 0  # what was known before is added once
        cross = target * alone
        if not alone:
            matrix.zero_()
        first, count, longest = None, 0, 0
        for x, y in samples(precise):
            add_gram_(matrix, x)
            own = y.any(0)  # a piece brings few of the classes
            cross[:, own] += x.double().T @ y[:, own].double()
            first = x[:SOME] if first is None else first
            count, longest = count + len(x), max(longest, len(x))
        distributed.sum_(matrix)
        distributed.sum_(cross)
        if not (torch.isfinite(matrix.diagonal()).all() and torch.isfinite(cross).all()):
            raise UserError("a feature is NaN or infinite; the network is broken, no gamma helps")
        factor, gamma = solvable(matrix, gammas)
        # Errors of other samples equal those of the first in size, not in sign; long sums err more (measured).
        some = max(1, min(count, SOME))
        times = (count / some) ** 0.5 * max(1.0, longest / some) ** 0.6
        return matrix, factor, gamma, solve(factor, cross), first, times

    # --- recursive --------------------------------------------------------------------------------------------------

    def _update(self, samples: Samples) -> None:
        inverse, weight = mirror_(self._lower()), self.weight.clone()
        for x, y in samples(torch.float64):
            inverse, weight = recursive_step(inverse, weight, x, y)
        if not (torch.isfinite(inverse.diagonal()).all() and torch.isfinite(weight).all()):
            raise UserError(
                f"gamma: {float(self.gamma):g} is too small, the recursion has overflowed; use a larger one"
            )
        self._keep((inverse + inverse.T) / 2)
        self.weight = weight


def decompose(targets: Tensor, n_old: int) -> tuple[Tensor, Tensor]:
    """The labels of classes met before and of those not met before, in one-hot rows: (N, K) -> two (N, K).

    Regression is linear in its targets, so the weights are a sum: the exposed-class label gain, from the first, and
    what the second give (Zhuang et al., GACL, NeurIPS 2024, eq. 8-12).
    """
    old = torch.arange(targets.shape[1], device=targets.device) < n_old  # (K,)
    return targets * old, targets * ~old


def recursive_step(inverse: Tensor, weight: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """R and W after more samples (Zhuang et al., ACIL, NeurIPS 2022; Woodbury identity), all in float64.

    With S = I + X R X^T and the gain G = R X^T S^-1:  R <- R - G X R,  W <- W + G (Y - X W).

    Args:
        inverse: R (M, M), at first I / gamma.
        weight: W (M, K).
        x: (n, M).
        y: (n, K).
    """
    half = x @ inverse  # X R, (n, M)
    system = half @ x.T  # (n, n)
    system.diagonal().add_(1)
    factor = torch.linalg.cholesky(system)
    root = torch.linalg.solve_triangular(factor, half, upper=False)  # L^-1 X R, (n, M)
    gain = torch.linalg.solve_triangular(factor.T, root, upper=True)  # S^-1 X R, (n, M)
    return inverse.addmm(root.T, root, alpha=-1), weight + gain.T @ (y - x @ weight)


def rounding(factor: Tensor, weight: Tensor, x: Tensor) -> float:
    """Relative change of W if the products of some samples, computed in float32, had been exact.

    The exact A' = A - D has W' - W = (A + gamma I)^-1 D W to first order, which is measured on eight random sums of the
    columns of W.

    Args:
        factor: the Cholesky factor of A + gamma I (M, M).
        weight: W (M, K).
        x: the samples, float32 (n, M).
    """
    signs = torch.randint(2, (weight.shape[1], 8), generator=torch.Generator().manual_seed(0)) * 2 - 1
    some = weight @ signs.to(weight)  # (M, 8)
    exact = x.T.double() @ (x.double() @ some)  # (M, 8)
    product = torch.cat([(part.T @ x).double() @ some for part in x.split(512, 1)])
    change = solve(factor, product - exact)
    return float(change.norm() / some.norm().clamp_min(1e-300))


def cholesky(matrix: Tensor, gamma: float) -> Tensor:
    """The lower factor L of matrix + gamma I = L L^T; of the matrix (M, M) the lower triangle is read.

    Raises:
        UserError: it is not positive definite, or its condition number leaves fewer than three digits.
    """
    system = matrix.clone()
    system.diagonal().add_(gamma)
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        raise UserError(f"gamma: {gamma:g} is too small, the equations cannot be solved; use a larger one")
    condition = condition_number(factor)
    if condition > WORST:
        raise UserError(
            f"gamma: {gamma:g} is too small, the equations have a condition number of {condition:.0e}, which leaves "
            f"fewer than three digits; use at least {gamma * condition / WORST:.1e}"
        )
    return factor


def solve(factor: Tensor, right: Tensor) -> Tensor:
    """X of L L^T X = B for a lower factor L (M, M) and B (M, K); ``torch.cholesky_solve`` copies L first."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def solvable(matrix: Tensor, gammas: Sequence[float]) -> tuple[Tensor, float]:
    """The factor of matrix + gamma I for the first gamma with which it can be used, and that gamma.

    Raises:
        UserError: there is none.
    """
    for gamma in gammas[:-1]:
        with contextlib.suppress(UserError):
            return cholesky(matrix, gamma), gamma
    return cholesky(matrix, gammas[-1]), gammas[-1]


def condition_number(factor: Tensor, steps: int = 3) -> float:
    """Largest eigenvalue over smallest, from below, by power iterations with L and its inverse: (M, M) -> a number."""
    largest = smallest = torch.ones(len(factor), 1, dtype=factor.dtype, device=factor.device) / len(factor) ** 0.5
    high = low = torch.ones((), dtype=factor.dtype, device=factor.device)
    for _ in range(steps):
        largest = factor @ (factor.T @ largest)
        high = largest.norm()
        largest = largest / high
        smallest = solve(factor, smallest)
        low = smallest.norm()
        smallest = smallest / low
    return float(high * low)
