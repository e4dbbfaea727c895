"""Ridge regression in pieces against scikit-learn on all data, and the symmetric matrices that it carries."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as Joint

from cil.errors import UserError
from cil.ops.closed_form.ridge import Ridge, cholesky, condition_number, recursive_step
from cil.ops.closed_form.statistics import add_gram_, mirror_, pack, packed_size, symmetric_product, unpack


def samples(n: int, width: int, classes: int, seed: int):
    """Float32 ReLU features (N, M) and labels (N,), classes in any order and as often as it comes."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=draws)
    return x.relu(), torch.randint(classes, (n,), generator=draws)


def joint(x, y, gamma: float) -> torch.Tensor:
    """What scikit-learn finds on all data at once, (M, K)."""
    found = Joint(alpha=gamma, fit_intercept=False, solver="cholesky").fit(x.double().numpy(), y.double().numpy())
    return torch.from_numpy(np.atleast_2d(found.coef_)).T


def learn(ridge: Ridge, x, y, pieces: list[int], chunk: int = 7) -> Ridge:
    """Learn pieces of these lengths, classes growing as they appear in the columns of y."""
    start = 0
    for length in pieces:
        part = torch.arange(start, start + length)
        start += length
        ridge.learn(lambda dtype, part=part: ((x[i].to(dtype), y[i]) for i in part.split(chunk)), length)
    return ridge


def relative(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


@st.composite
def streams(draw):
    width, classes = draw(st.integers(1, 24)), draw(st.integers(1, 6))
    pieces = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    return width, classes, pieces, draw(st.floats(0.05, 200)), draw(st.integers(0, 10**6)), draw(st.integers(1, 50))


@settings(max_examples=80, deadline=None)
@given(streams(), st.sampled_from(["packed", "full"]))
def test_recursive_accumulated_and_joint_weights_are_equal_for_any_pieces_and_repetitions(stream, storage):
    width, classes, pieces, gamma, seed, chunk = stream
    x, labels = samples(sum(pieces), width, classes, seed)
    y = F.one_hot(labels, classes)
    expected = joint(x, y, gamma)
    for solver in ("accumulated", "recursive", "auto"):
        ridge = Ridge(width, gamma, storage=storage, solver=solver, products="float64")
        ridge.grow(classes)
        learn(ridge, x, y, pieces, chunk)
        torch.testing.assert_close(ridge.weight, expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(ridge.information(), x.double().T @ x.double(), rtol=1e-7, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(streams())
def test_permuting_the_stream_permutes_columns_alone(stream):
    width, classes, pieces, gamma, seed, chunk = stream
    x, labels = samples(sum(pieces), width, classes, seed)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    columns = torch.randperm(classes, generator=torch.Generator().manual_seed(seed + 1))
    renamed = torch.argsort(columns)[labels[order]]  # class c is now column argsort(columns)[c]

    def run(x, labels, pieces):
        ridge = Ridge(width, gamma, products="float64")
        ridge.grow(classes)
        return learn(ridge, x, F.one_hot(labels, classes), pieces, chunk).weight

    one, other = run(x, labels, pieces), run(x[order], renamed, pieces[::-1])
    torch.testing.assert_close(other, one[:, columns], rtol=1e-8, atol=1e-8)


def test_classes_that_come_later_have_columns_as_if_they_had_been_known():
    x, labels = samples(120, 16, 5, seed=3)
    labels = labels.sort().values
    ridge = Ridge(16, 0.5, products="float64")
    seen = 0
    for part in torch.arange(120).split(30):
        n_seen = int(labels[part].max()) + 1
        ridge.grow(n_seen - seen)
        seen = n_seen
        ridge.learn(lambda dtype, part=part, k=seen: [(x[part].to(dtype), F.one_hot(labels[part], k))], len(part))
    torch.testing.assert_close(ridge.weight, joint(x, F.one_hot(labels, 5), 0.5), rtol=1e-9, atol=1e-9)


def test_the_form_follows_from_cost_and_does_not_change_the_weights():
    x, labels = samples(600, 60, 4, seed=0)
    y = F.one_hot(labels, 4)
    ridge = Ridge(60, 1.0, products="float64")
    ridge.grow(4)
    learn(ridge, x[:300], y[:300], [300])
    assert not ridge.inverse
    learn(ridge, x[300:], y[300:], [4] * 75)  # 4 samples in 60 columns: an update is cheaper than a solution
    assert ridge.inverse
    torch.testing.assert_close(ridge.weight, joint(x, y, 1.0), rtol=1e-9, atol=1e-9)


def test_a_new_penalty_holds_for_all_samples():
    x, labels = samples(90, 12, 3, seed=5)
    y = F.one_hot(labels, 3)
    ridge = Ridge(12, 100.0, products="float64", solver="accumulated")
    ridge.grow(3)
    for part, gamma in ((slice(0, 30), 3.0), (slice(30, 60), 1e-3), (slice(60, 90), 0.7)):
        ridge.learn(lambda dtype, part=part: [(x[part].to(dtype), y[part])], 30, gamma=gamma)
    torch.testing.assert_close(ridge.weight, joint(x, y, 0.7), rtol=1e-8, atol=1e-8)


def test_one_recursive_step_is_the_textbook_formula():
    x, labels = samples(9, 6, 2, seed=1)
    x, y = x.double(), F.one_hot(labels, 2).double()
    before, weight = torch.eye(6, dtype=torch.float64) / 0.3, torch.ones(6, 2, dtype=torch.float64)
    inverse, found = recursive_step(before, weight, x, y)
    expected = torch.linalg.inv(torch.linalg.inv(before) + x.T @ x)
    torch.testing.assert_close(inverse, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, weight + expected @ x.T @ (y - x @ weight), rtol=1e-10, atol=1e-12)


# --- precision --------------------------------------------------------------------------------------------------------


def test_products_in_float32_are_used_where_they_do_not_matter_and_their_error_is_known():
    x, labels = samples(2000, 64, 10, seed=0)
    y = F.one_hot(labels, 10)
    ridge = Ridge(64, 1.0)
    ridge.grow(10)
    learn(ridge, x, y, [1000, 1000], chunk=100)
    error = relative(ridge.weight, joint(x, y, 1.0))
    assert 1e-9 < error < 1e-5  # rounded, and little
    told = float(ridge.rounded.sqrt())
    assert told / 10 < error < told * 10


def test_auto_recomputes_a_piece_in_float64_where_rounding_would_show():
    x, labels = samples(200, 300, 10, seed=0)
    y = F.one_hot(labels, 10)
    ridge = Ridge(300, 1e-3)
    ridge.grow(10)
    asked = []

    def piece(precision, rows):
        asked.append(precision)
        yield x[rows].to(precision), y[rows]

    ridge.learn(partial(piece, rows=slice(0, 100)), 100)
    assert asked == [torch.float32, torch.float64]
    ridge.learn(partial(piece, rows=slice(100, 200)), 100)
    assert asked[2:] == [torch.float64], "float32 is given up for good"
    assert relative(ridge.weight, joint(x, y, 1e-3)) < 1e-8


@pytest.mark.parametrize("gamma", [1e-5, 1e-7])
def test_auto_solves_in_float64_what_rounding_makes_unsolvable(gamma):
    x, labels = samples(200, 300, 10, seed=0)
    y = F.one_hot(labels, 10)
    rounded = (x.T @ x).double() + gamma * torch.eye(300, dtype=torch.float64)
    assert torch.linalg.eigvalsh(rounded)[0] < 0
    ridge = Ridge(300, gamma)
    ridge.grow(10)
    learn(ridge, x, y, [100, 100], chunk=50)
    assert relative(ridge.weight, joint(x, y, gamma)) < 1e-5
    assert 1 <= float(ridge.rounded) < float("inf")
    with pytest.raises(UserError, match=f"gamma: {gamma:g} is too small"):
        learn(Ridge(300, gamma, products="float32"), x, y[:, :0], [200], chunk=50)


@pytest.mark.parametrize("products", ["auto", "float64"])
def test_of_several_penalties_the_first_that_can_be_solved_is_taken(products):
    x, labels = samples(60, 80, 3, seed=0)
    y = F.one_hot(labels, 3)
    ridge = Ridge(80, 5.0, products=products, solver="accumulated")
    ridge.grow(3)
    ridge.learn(lambda dtype: [(x.to(dtype), y)], 60, gamma=[1e-17, 1e-6, 50.0])
    assert float(ridge.gamma) == 1e-6
    torch.testing.assert_close(ridge.weight, joint(x, y, 1e-6), rtol=1e-4, atol=1e-5)
    before = {name: tensor.clone() for name, tensor in ridge.state_dict().items()}
    with pytest.raises(UserError, match="gamma: 1e-16 is too small"):
        ridge.learn(lambda dtype: [(x.to(dtype), y)], 60, gamma=[1e-17, 1e-16])
    assert all(torch.equal(tensor, before[name]) for name, tensor in ridge.state_dict().items())


def test_float32_is_refused_where_it_would_be_wrong_and_the_error_names_gamma():
    x, labels = samples(200, 300, 10, seed=0)
    y = F.one_hot(labels, 10)
    ridge = Ridge(300, 1e-3, products="float32")
    ridge.grow(10)
    with pytest.raises(UserError, match=r"gamma: 0.001 is too small for products in float32.*changes the weights by"):
        learn(ridge, x, y, [200], chunk=50)
    assert not ridge.weight.any()  # nothing is half learned
    # The refusal is right: the same sums in float32 are far from the joint solution.
    rounded = (x.T @ x).double() + 1e-3 * torch.eye(300, dtype=torch.float64)
    wrong = torch.linalg.solve(rounded, x.double().T @ y.double())
    assert relative(wrong, joint(x, y, 1e-3)) > 1e-4


def test_equations_that_cannot_be_solved_name_gamma():
    x = torch.ones(5, 8)
    for gamma in (1e-18, 1e-14):
        ridge = Ridge(8, gamma)
        ridge.grow(2)
        with pytest.raises(UserError, match=f"gamma: {gamma:g} is too small"):
            learn(ridge, x, F.one_hot(torch.tensor([0, 1, 0, 1, 0]), 2), [5])


def test_features_that_are_not_finite_are_an_error():
    x, labels = samples(20, 8, 2, seed=0)
    x[3, 2] = torch.nan
    ridge = Ridge(8, 1.0)
    ridge.grow(2)
    with pytest.raises(UserError, match="NaN or infinite"):
        learn(ridge, x, F.one_hot(labels, 2), [20])


def test_the_condition_number_is_that_of_the_eigenvalues():
    x, _ = samples(50, 10, 2, seed=0)
    matrix = x.double().T @ x.double()
    values = torch.linalg.eigvalsh(matrix + 0.1 * torch.eye(10, dtype=torch.float64))
    found = condition_number(cholesky(matrix, 0.1), steps=200)
    assert found == pytest.approx(float(values[-1] / values[0]), rel=1e-3)


# --- symmetric matrices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 1500])
def test_packing_keeps_every_number_of_a_symmetric_matrix(n):
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(n))
    matrix = matrix + matrix.T
    packed = pack(matrix)
    assert packed.shape == (packed_size(n),)
    assert torch.equal(unpack(packed), matrix.tril())
    assert torch.equal(mirror_(unpack(packed)), matrix)
    torch.testing.assert_close(
        symmetric_product(unpack(packed), matrix[:, :2]), matrix @ matrix[:, :2], rtol=1e-3, atol=1e-2
    )


def test_a_length_that_is_no_triangle_is_refused():
    with pytest.raises(ValueError, match="5 numbers"):
        unpack(torch.zeros(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gram_matrix_in_blocks_is_the_product(dtype):
    x = torch.randn(40, 23, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = add_gram_(torch.ones(23, 23, dtype=torch.float64), x, block=5)
    expected = 1 + x.double().T @ x.double()
    torch.testing.assert_close(found.tril(), expected.tril(), rtol=1e-5, atol=1e-5)
