"""Closed-form strategies against scikit-learn, NumPy and loops, on streams with new and with returning classes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Joint

import cil.learning.frozen
from cil.errors import UserError
from cil.memory.ledger import STATE
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.ops.closed_form.buffers import GaussianKernel, RandomFeatures
from cil.ops.closed_form.ridge import decompose
from cil.testing.lab import Lab, equal_states
from strategies.analytic.acil import ACIL
from strategies.analytic.dsal import DSAL
from strategies.analytic.gacil import GACIL
from strategies.analytic.gkeal import GKEAL
from strategies.analytic.ranpac import RanPAC, best_penalties
from tests.courses import called, structure
from tests.lessons import backbone_of, in_order, one_hot, returning, so_far, taught, teach, with_few_images

EXACT = {"products": "float64"}
ALIKE = {"width": 32, "gamma": 0.1, "init": "uniform", **EXACT}  # what ACIL and GACIL share, with other defaults
CLOSE = {"rtol": 1e-8, "atol": 1e-8}
KINDS = [ACIL, GACIL, DSAL, GKEAL, RanPAC]


def joint(h: np.ndarray, y: np.ndarray, gamma: float) -> np.ndarray:
    """scikit-learn's ridge regression of all samples at once, (M, K)."""
    return Joint(alpha=gamma, fit_intercept=False, solver="cholesky").fit(h, y).coef_.T


def random_layer(lesson) -> np.ndarray:
    return lesson.state["expansion.weight"].double().numpy()


def relu(h: np.ndarray) -> np.ndarray:
    return np.where(h > 0, h, 0.0)


def weight(lesson, name: str = "ridge") -> np.ndarray:
    return lesson.state[f"{name}.weight"].numpy()


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=called)
def test_the_backbone_learns_in_the_first_task_and_keeps_every_bit_from_then_on(kind):
    lessons = taught(kind, frozen=False)
    untrained = {
        name: tensor.numpy().tobytes()
        for name, tensor in Lab(kind).experiment().fresh().state_dict().items()
        if name.startswith("model.backbone.")
    }
    first = backbone_of(lessons[0])
    assert len(first) == 12
    assert not [name for name in first if first[name] == untrained[name]]
    assert all(backbone_of(lesson) == first for lesson in lessons[1:])
    assert not any(name.startswith("helper") for lesson in lessons for name in lesson.state)


@pytest.mark.parametrize("kind", KINDS, ids=called)
def test_a_frozen_backbone_learns_nothing_and_no_gradient_step_is_taken(kind, monkeypatch):
    monkeypatch.setattr("cil.learning.trainer.Trainer.descend", None)
    lessons = teach(kind)
    fresh = Lab(kind).experiment().fresh().state_dict()
    for lesson in lessons:
        changed = equal_states(dict(fresh), {name: lesson.state[name] for name in fresh})
        assert not changed


@pytest.mark.parametrize("kind", KINDS, ids=called)
def test_any_number_of_samples_may_be_expanded_at_once(kind, monkeypatch):
    whole = taught(kind, **EXACT)
    monkeypatch.setattr(cil.learning.frozen, "CHUNK", 7)
    for one, other in zip(whole, teach(kind, **EXACT), strict=True):
        np.testing.assert_allclose(weight(other), weight(one), **CLOSE)


@pytest.mark.parametrize("kind", KINDS, ids=called)
def test_products_in_float32_make_nearly_the_same_scores(kind):
    options = {"penalties": (1.0,)} if kind is RanPAC else {}
    rounded, exact = taught(kind, **options), taught(kind, **options, **EXACT)
    assert any((one.scores != other.scores).any() for one, other in zip(rounded, exact, strict=True))
    for one, other in zip(rounded, exact, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not RanPAC], ids=called)
def test_recursive_and_accumulated_regressions_score_alike(kind):
    one, other = (taught(kind, solver=solver, **EXACT) for solver in ("accumulated", "recursive"))
    assert not one[-1].state["ridge.inverse"]
    assert other[-1].state["ridge.inverse"]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, **CLOSE)


@pytest.mark.parametrize("kind", KINDS, ids=called)
def test_a_packed_matrix_scores_alike_and_is_half_as_large(kind):
    packed, full = taught(kind, **EXACT), taught(kind, storage="full", **EXACT)
    matrices = 2 if kind is DSAL else 1
    for one, other in zip(packed, full, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
        assert other.size["statistics"] - one.size["statistics"] == matrices * 8 * (32 * 32 - 32 * 33 // 2)
        assert {name for name in one.size if one.size[name] != other.size[name]} == {"statistics", "buffers", "strict"}


# Width 4 and 12 features, so a packed matrix has 10 numbers, a random layer or 4 centres 48; the penalty and what
# rounding has changed are numbers of 8 bytes, the form of the matrix a truth value of 1. Each class adds a column of 4
# float64.
@pytest.mark.parametrize(
    ("kind", "options", "statistics", "head"),
    [
        (ACIL, {}, 10 * 8 + 48 * 4 + 8 + 8 + 1, 4 * 8),
        (ACIL, {"storage": "full"}, 16 * 8 + 48 * 4 + 8 + 8 + 1, 4 * 8),
        (ACIL, {"solver": "recursive"}, 10 * 8 + 48 * 4 + 8 + 8 + 1, 4 * 8),
        (GACIL, {}, 289, 32),
        (RanPAC, {}, 289, 32),
        (DSAL, {}, 48 * 4 + 2 * (10 * 8 + 8 + 8 + 1), 2 * 4 * 8),
        (GKEAL, {}, 10 * 8 + 48 * 4 + 4 + 8 + 8 + 1, 4 * 8),
    ],
    ids=called,
)
def test_every_byte_of_a_small_case(kind, options, statistics, head):
    for n_seen, lesson in zip((2, 3, 6), teach(kind, width=4, **options), strict=True):
        counted = {name: lesson.size[name] for name in STATE}
        assert counted == {
            "backbone": 4 * (8 * 9 + 16 + 12 * 8 * 9 + 24),
            "head": n_seen * head,
            "normalisation": 4 * (16 + 24) + 2 * 8,  # and two counters of batches
            "statistics": statistics,
        }
        assert lesson.size["strict"] == sum(counted.values())
        assert lesson.size["paper"] == counted["backbone"]


# --- ACIL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("options", [{}, {"solver": "recursive", "gamma": 3.0}, {"storage": "full", "width": 90}])
def test_acil_is_the_regression_of_all_features_so_far(frozen, options):
    lessons = taught(ACIL, frozen=frozen, **options, **EXACT)
    for lesson, x, y in so_far(lessons):
        layer = random_layer(lesson)
        expected = joint(relu(x @ layer), one_hot(y, lesson.task.n_seen), options.get("gamma", 0.1))
        np.testing.assert_allclose(weight(lesson), expected, **CLOSE)
        np.testing.assert_allclose(lesson.scores, relu(lesson.test @ layer) @ expected, **CLOSE)


@pytest.mark.parametrize(("kind", "options"), [(ACIL, {}), (GACIL, {}), (RanPAC, {"penalties": (0.3,)})], ids=called)
def test_the_order_of_tasks_permutes_columns_alone(kind, options):
    groups = ((4, 2, 5), (0,), (3, 1))
    one, other = taught(kind, **options, **EXACT)[-1], teach(kind, in_order(groups), **options, **EXACT)[-1]
    np.testing.assert_array_equal(random_layer(other), random_layer(one))
    np.testing.assert_allclose(weight(other), weight(one)[:, [4, 2, 5, 0, 3, 1]], **CLOSE)
    np.testing.assert_allclose(other.scores, one.scores[:, [4, 2, 5, 0, 3, 1]], **CLOSE)


@pytest.mark.parametrize(("init", "spread"), [("uniform", 1 / math.sqrt(3)), ("normal", 1.0)])
def test_the_random_layer_is_drawn_as_named_and_from_the_seed_of_the_run(init, spread):
    layers = []
    for seed in (0, 0, 1):
        experiment = Lab(ACIL, {"width": 3000, "init": init}).experiment(seed)
        strategy = experiment.fresh()
        torch.rand(seed + 3)  # what is drawn elsewhere does not matter
        experiment.grow(strategy, experiment.scenario.tasks[0])
        layers.append(strategy.expansion.weight.double().numpy())
    np.testing.assert_array_equal(layers[0], layers[1])
    assert (layers[0] != layers[2]).mean() > 0.99
    scaled = layers[0] * math.sqrt(12) if init == "uniform" else layers[0]  # to -1 ... 1
    assert scaled.shape == (12, 3000)
    assert scaled.mean() == pytest.approx(0, abs=0.02)
    assert scaled.std() == pytest.approx(spread, rel=0.02)
    assert (abs(scaled).max() <= 1) == (init == "uniform")


# --- GACIL ------------------------------------------------------------------------------------------------------------


def test_the_stream_brings_old_classes_back():
    tasks = returning().tasks
    assert [list(task.new) for task in tasks] == [[0, 1], [2, 3], [4, 5], []]
    assert [task.train.counts(6).tolist() for task in tasks] == [
        [8, 12, 0, 0, 0, 0],
        [8, 0, 12, 1, 0, 0],
        [0, 12, 12, 0, 24, 12],
        [8, 0, 0, 1, 0, 12],
    ]
    assert all(task.boundary for task in tasks)


@pytest.mark.parametrize("solver", ["accumulated", "recursive"])
def test_gacil_is_the_joint_regression_where_classes_return(solver):
    lessons = teach(GACIL, returning(), gamma=0.7, width=40, solver=solver, **EXACT)
    for lesson, x, y in so_far(lessons):
        h = relu(x @ random_layer(lesson))
        expected = joint(h, one_hot(y, lesson.task.n_seen), 0.7)
        np.testing.assert_allclose(weight(lesson), expected, **CLOSE)


def halves(lesson, before: np.ndarray, h_all: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """(W_unexposed, W_ECLG) of one task, eq. 8-12 of the paper with R_k written as the inverse that it is."""
    h = relu(lesson.x.astype(np.float64) @ random_layer(lesson))
    targets, n_old = one_hot(lesson.y, lesson.task.n_seen), lesson.task.n_old
    inverse = np.linalg.inv(h_all.T @ h_all + gamma * np.eye(h.shape[1]))
    unexposed = np.hstack([before - inverse @ h.T @ h @ before, inverse @ h.T @ targets[:, n_old:]])
    gain = np.hstack([inverse @ h.T @ targets[:, :n_old], np.zeros((h.shape[1], lesson.task.n_new))])
    return unexposed, gain


def test_gacil_is_the_sum_of_its_two_parts_and_acil_lacks_the_exposed_one():
    lessons, plain = (teach(kind, returning(), **ALIKE) for kind in (GACIL, ACIL))
    before = alone = np.zeros((32, 0))
    for (lesson, x, _), other in zip(so_far(lessons), plain, strict=True):
        h_all = relu(x @ random_layer(lesson))
        unexposed, gain = halves(lesson, before, h_all, 0.1)
        np.testing.assert_allclose(weight(lesson), unexposed + gain, **CLOSE)
        alone, _ = halves(other, alone, h_all, 0.1)
        np.testing.assert_allclose(weight(other), alone, **CLOSE)
        assert gain.any() == bool(lesson.task.index)
        before = weight(lesson)


def test_the_label_matrix_falls_into_what_was_met_and_what_was_not():
    targets = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]])
    exposed, unexposed = decompose(targets, 2)
    assert exposed.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert unexposed.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_acil_and_gacil_differ_where_classes_return_and_nowhere_else():
    for one, other in zip(taught(ACIL, **ALIKE), taught(GACIL, **ALIKE), strict=True):
        assert not equal_states(one.state, other.state)
    one, other = (teach(kind, returning(), **ALIKE) for kind in (ACIL, GACIL))
    assert not equal_states(one[0].state, other[0].state)
    assert all(abs(a.scores - b.scores).max() > 0.05 for a, b in zip(one[1:], other[1:], strict=True))


# --- DS-AL ------------------------------------------------------------------------------------------------------------


def test_dsal_without_compensation_is_acil():
    for one, other in zip(taught(ACIL), taught(DSAL, compensation=0.0), strict=True):
        assert one.scores.tobytes() == other.scores.tobytes()
        assert not equal_states(one.state, {n: t for n, t in other.state.items() if not n.startswith("second.")})
        assert other.state["second.weight"].any()


@pytest.mark.parametrize("residual_batch", [None, 7])
@pytest.mark.parametrize("stream", ["new classes", "returning classes"])
def test_dsal_is_the_two_streams_written_out(stream, residual_batch):
    scenario = None if stream == "new classes" else returning()
    options = {"compensation": 0.8, "compensation_gamma": 0.02, "gamma": 0.3, "width": 20}
    options["residual_batch"] = residual_batch
    lessons = teach(DSAL, scenario, **options, **EXACT)
    eye = np.eye(20)
    gram, cross, second_gram, second_cross = (np.zeros((20, n)) for n in (20, 0, 20, 0))
    cleansed = 0.0
    for lesson in lessons:
        layer, n_old, n_new = random_layer(lesson), lesson.task.n_old, lesson.task.n_new
        cross, second_cross = (np.hstack([q, np.zeros((20, n_new))]) for q in (cross, second_cross))
        targets = one_hot(lesson.y, lesson.task.n_seen)
        targets[:, :n_old] = 0
        every = lesson.x.astype(np.float64) @ layer
        for start in range(0, len(every), residual_batch or len(every)):
            batch = slice(start, start + (residual_batch or len(every)))
            u, y = every[batch], targets[batch]
            gram, cross = gram + relu(u).T @ relu(u), cross + relu(u).T @ y
            main = np.linalg.solve(gram + 0.3 * eye, cross)
            residual = y - relu(u) @ main
            cleansed = max(cleansed, abs(residual[:, :n_old]).max(initial=0))
            residual[:, :n_old] = 0
            second_gram, second_cross = second_gram + np.tanh(u).T @ np.tanh(u), second_cross + np.tanh(u).T @ residual
        second = np.linalg.solve(second_gram + 0.02 * eye, second_cross)
        np.testing.assert_allclose(weight(lesson), main, **CLOSE)
        np.testing.assert_allclose(weight(lesson, "second"), second, **CLOSE)
        test = lesson.test.astype(np.float64) @ layer
        np.testing.assert_allclose(lesson.scores, relu(test) @ main + 0.8 * np.tanh(test) @ second, **CLOSE)
    assert cleansed > 0.01  # there was something to cleanse


# --- GKEAL ------------------------------------------------------------------------------------------------------------


def kernel(x: np.ndarray, centres: np.ndarray, sigma: float) -> np.ndarray:
    rows = []
    for row in x.tolist():
        squares = [sum((a - b) ** 2 for a, b in zip(row, centre, strict=True)) for centre in centres.tolist()]
        rows.append([math.exp(-square / (2 * sigma**2)) for square in squares])
    return np.array(rows)


def centres_of(lesson) -> np.ndarray:
    return lesson.state["expansion.centres"].double().numpy()


def test_the_kernel_is_that_of_explicit_loops():
    draws = torch.Generator().manual_seed(0)
    expansion = GaussianKernel(5, 6)
    features = torch.randn(40, 5, generator=draws)
    expansion.settle(features[:20], sigma=1.3)
    x = torch.cat([features, expansion.centres])  # a centre is at distance 0 from itself, never below
    expected = kernel(x.numpy(), expansion.centres.numpy(), 1.3)
    for dtype, near in ((torch.float64, 1e-7), (torch.float32, 1e-5)):  # sigma itself is float32
        found = expansion(x.to(dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(found.numpy(), expected, rtol=near, atol=near)
    far = GaussianKernel(5, 6)
    far.settle(features + 500, sigma=1e-2)
    assert float(far(far.centres).max()) == 1  # rounding of a distance of zero never makes it negative


@pytest.mark.parametrize("sigma", [0.2, None])
def test_gkeal_is_the_regression_on_the_kernel(sigma):
    lessons = taught(GKEAL, sigma=sigma, gamma=0.05, **EXACT)
    for lesson, x, y in so_far(lessons):
        centres, found = centres_of(lesson), float(lesson.state["expansion.sigma"])
        assert found == pytest.approx(found if sigma is None else sigma, rel=1e-6)
        expected = joint(kernel(x, centres, found), one_hot(y, lesson.task.n_seen), 0.05)
        np.testing.assert_allclose(weight(lesson), expected, **CLOSE)
        np.testing.assert_allclose(lesson.scores, kernel(lesson.test, centres, found) @ expected, **CLOSE)


def test_gkeal_chooses_different_features_of_the_first_task_and_never_others():
    lessons = taught(GKEAL, **EXACT)
    known = [row.tolist() for row in lessons[0].x.astype(np.float64)]  # 48 features for 32 centres
    places = [known.index(row) for row in centres_of(lessons[0]).tolist()]
    assert len(set(places)) == 32
    assert places != sorted(places)  # at random
    assert {place < 24 for place in places} == {True, False}  # of both classes
    for lesson in lessons[1:]:
        assert not equal_states(
            *({n: t for n, t in own.state.items() if n.startswith("expansion.")} for own in (lessons[0], lesson))
        )


def test_gkeal_fills_up_with_mixtures_of_two_where_features_are_too_few():
    lesson = teach(GKEAL, width=60, **EXACT)[0]
    known, centres = lesson.x.astype(np.float64), centres_of(lesson)
    assert sorted(centres[:48].tolist()) == sorted(known.tolist())
    parts = []
    for centre in centres[48:]:
        gaps = []
        for one, two in itertools.combinations(known, 2):
            part = np.dot(centre - two, one - two) / np.dot(one - two, one - two)
            gaps.append((np.linalg.norm(two + part * (one - two) - centre), part))
        gap, part = min(gaps)
        assert gap < 1e-6
        assert -1e-6 <= part <= 1 + 1e-6
        parts.append(part)
    assert len(np.unique(centres, axis=0)) > 55
    assert max(parts) - min(parts) > 0.3


def test_without_a_sigma_it_is_the_median_distance_of_centres():
    lesson = taught(GKEAL, sigma=None, gamma=0.05, **EXACT)[0]
    pairs = itertools.combinations(centres_of(lesson).tolist(), 2)
    distances = sorted(math.sqrt(sum((a - b) ** 2 for a, b in zip(one, two, strict=True))) for one, two in pairs)
    assert len(distances) == 496
    low, high = distances[247], distances[248]
    assert low * (1 - 1e-5) <= float(lesson.state["expansion.sigma"]) <= high * (1 + 1e-5)


def test_a_single_centre_has_a_kernel_too():
    expansion = GaussianKernel(3, 1)
    expansion.settle(torch.eye(3))
    assert float(expansion.sigma) == 1
    lessons = teach(GKEAL, width=1, sigma=None)
    assert all(np.isfinite(lesson.scores).all() for lesson in lessons)


def test_the_kernel_does_not_cancel_far_from_the_origin():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=draws, dtype=torch.float64) + 300
    expansion = GaussianKernel(5, 6)
    expansion.settle(x[:6].float(), 1.3)
    expected = kernel(x.float().numpy(), expansion.centres.numpy(), 1.3)
    np.testing.assert_allclose(expansion(x.float()).numpy(), expected, atol=1e-3)


# --- RanPAC -----------------------------------------------------------------------------------------------------------


def test_ranpac_with_one_penalty_is_the_joint_regression():
    for scenario in (None, returning(), with_few_images(1)):
        for lesson, x, y in so_far(teach(RanPAC, scenario, penalties=[0.4], gamma=9.0, **EXACT)):
            expected = joint(relu(x @ random_layer(lesson)), one_hot(y, lesson.task.n_seen), 0.4)
            np.testing.assert_allclose(weight(lesson), expected, **CLOSE)


def test_ranpac_is_the_joint_regression_with_the_penalty_chosen_last():
    lessons, chosen = taught(RanPAC, **EXACT), set()
    for lesson, x, y in so_far(lessons):
        gamma = float(lesson.state["ridge.gamma"])
        chosen.add(gamma)
        h = relu(x @ random_layer(lesson))
        expected = np.linalg.solve(h.T @ h + gamma * np.eye(32), h.T @ one_hot(y, lesson.task.n_seen))
        np.testing.assert_allclose(weight(lesson), expected, rtol=1e-6, atol=1e-7)
    assert chosen <= {10.0**power for power in range(-8, 9)}
    assert len(chosen) > 1  # it is chosen anew


def squared_errors(x, y, x_held, y_held, penalties) -> list[float]:
    out = []
    for penalty in penalties:
        w = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
        out.append(float(np.mean((x_held @ w - y_held) ** 2)))
    return out


@pytest.mark.parametrize("n", [60, 20, 12, 3, 1])  # more samples than the 20 columns, as many, fewer
@pytest.mark.parametrize("seed", range(4))
def test_penalties_are_ordered_as_by_brute_force(n, seed):
    draws = np.random.default_rng(seed)
    hidden = draws.normal(size=(20, 3))
    x, x_held = draws.normal(size=(n, 20)), draws.normal(size=(7, 20))
    y, y_held = (part @ hidden + draws.normal(size=(len(part), 3)) * seed for part in (x, x_held))
    penalties = [0.01, 0.3, 1.0, 4.0, 30.0, 1000.0]
    errors = squared_errors(x, y, x_held, y_held, penalties)
    found = best_penalties(*map(torch.from_numpy, (x, y, x_held, y_held)), penalties)
    assert found == [penalty for _, penalty in sorted(zip(errors, penalties, strict=True))]


def test_ranpac_chooses_on_a_share_of_the_task_that_it_does_not_fit(monkeypatch):
    seen = []

    def spy(x, y, x_held, y_held, penalties):
        seen.append((x, y, x_held, y_held))
        return best_penalties(x, y, x_held, y_held, penalties)

    monkeypatch.setattr("strategies.analytic.ranpac.best_penalties", spy)
    lessons = teach(RanPAC, held_out=0.25, **EXACT)
    for (x, y, x_held, y_held), lesson in zip(seen, lessons, strict=True):
        assert len(x_held) == round(len(lesson.x) / 4)
        h, targets = relu(lesson.x @ random_layer(lesson)), one_hot(lesson.y, lesson.task.n_seen)
        rows = torch.cat([torch.cat([x, y], 1), torch.cat([x_held, y_held], 1)]).numpy()
        expected = np.hstack([h, targets])
        assert not np.allclose(rows, expected)  # shuffled
        order = [np.argmin(abs(expected - row).sum(1)) for row in rows]
        assert sorted(order) == list(range(len(expected)))
        np.testing.assert_allclose(rows, expected[order], rtol=1e-6, atol=1e-6)
        best = squared_errors(*(part.numpy() for part in (x, y, x_held, y_held)), [10.0**p for p in range(-6, 9)])
        assert float(lesson.state["ridge.gamma"]) == 10.0 ** (int(np.argmin(best)) - 6)


@pytest.mark.parametrize("images", [1, 2])
def test_ranpac_learns_a_task_of_a_few_images_with_its_own_penalty(images):
    lessons = teach(RanPAC, with_few_images(images), gamma=0.25, **EXACT)
    assert float(lessons[0].state["ridge.gamma"]) == 0.25
    lesson, x, y = so_far(lessons)[0]
    expected = joint(relu(x @ random_layer(lesson)), one_hot(y, 2), 0.25)
    np.testing.assert_allclose(weight(lesson), expected, **CLOSE)
    assert float(lessons[1].state["ridge.gamma"]) != 0.25


def test_penalties_that_cannot_be_solved_are_passed_over():
    x = torch.ones(6, 4)
    y, held = torch.eye(2).double()[[0, 1, 0, 1, 0, 1]], torch.ones(2, 4)
    assert best_penalties(x, y, held, y[:2], [0.0, 1e-17, 0.5, -3.0]) == [0.5]
    with pytest.raises(UserError, match=r"strategy.penalties: .*none of \[0.0, 1e-17\]; give larger ones"):
        best_penalties(x, y, held, y[:2], [0.0, 1e-17])


def test_no_penalties_are_not_all_penalties():
    with pytest.raises(UserError, match=r"penalties: \[\] must be null or hold one or more numbers"):
        teach(RanPAC, penalties=[])


def ranpac(width: int) -> RanPAC:
    """A strategy about to learn two classes of plain vectors of three numbers, which its expansion passes on."""
    torch.manual_seed(0)
    backbone = torch.nn.Identity()
    backbone.num_features = 3
    strategy = RanPAC(Network(backbone, LinearHead(3)), width=width, **EXACT)
    strategy.grow(structure(range(2), 0))
    return strategy


def test_ranpac_takes_the_best_penalty_with_which_all_samples_can_be_solved(monkeypatch):
    # Sixteen samples can be solved without any penalty to speak of, so the smallest may win on the four held out; the
    # regression in a hundred columns cannot.
    strategy = ranpac(width=100)
    ranked = [1e-17, 1e-16, 0.5, 2.0]
    monkeypatch.setattr("strategies.analytic.ranpac.best_penalties", lambda *_: ranked)
    features, labels = torch.randn(20, 3), torch.arange(20) % 2
    task = structure(range(2), 0)
    strategy.observe(task, features, labels, trainer=None)
    h = strategy.expand(features).numpy()
    assert float(strategy.ridge.gamma) == 0.5
    np.testing.assert_allclose(strategy.ridge.weight.numpy(), joint(h, one_hot(labels.numpy(), 2), 0.5), **CLOSE)
    monkeypatch.setattr("strategies.analytic.ranpac.best_penalties", lambda *_: ranked[:2])
    with pytest.raises(UserError, match="gamma: 1e-16 is too small"):
        strategy.observe(task, features, labels, trainer=None)


def test_ranpac_learns_few_images_of_many_features_with_the_published_penalties():
    class Wide(torch.nn.Identity):
        num_features = 64

    torch.manual_seed(0)
    strategy = RanPAC(Network(Wide(), LinearHead(64)), width=500, **EXACT)
    task = structure(range(10), 0)
    strategy.grow(task)
    features = 2 * torch.randn(10, 64)[torch.arange(20) % 10] + torch.randn(20, 64)
    strategy.observe(task, features, torch.arange(20) % 10, trainer=None)
    assert strategy.scores(features).argmax(1).tolist() == (torch.arange(20) % 10).tolist()


def test_random_features_are_the_product_in_the_precision_asked_for():
    torch.manual_seed(0)
    layer = RandomFeatures(4, 9)
    x = torch.randn(5, 4)
    assert layer(x).dtype == torch.float32
    np.testing.assert_allclose(layer(x.double()), x.double().numpy() @ layer.weight.double().numpy(), rtol=1e-14)


@pytest.mark.parametrize("held_out", [-0.1, 1.0, float("nan")])
def test_a_share_that_leaves_nothing_to_fit_is_refused(held_out):
    with pytest.raises(UserError, match=r"strategy.held_out: .* must be a finite number >= 0 and < 1"):
        Lab(RanPAC, {"held_out": held_out}).build()
