"""Few-shot scenarios, what they measure, and the methods of prototypes: by explicit loops and worked vectors."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rich.console import Console
from sklearn.neighbors import KNeighborsClassifier

from cil.command import config
from cil.compare import page, tables
from cil.compare.comparison import FEW_SHOT, METRICS, compare
from cil.data.images import Dataset, ImageSet
from cil.errors import UserError
from cil.evaluation import few_shot
from cil.experiment.run import run
from cil.memory.exemplars import Memory
from cil.nets.heads import CosineHead
from cil.nets.network import Network
from cil.ops.closed_form.calibration import calibrated, similarity_weights
from cil.ops.closed_form.covariances import ClassCovariances
from cil.ops.closed_form.means import ClassMeans
from cil.ops.closed_form.nearest import KeptFeatures
from cil.report import sessions as few_shot_report
from cil.report.report import jsonable, results
from cil.testing.lab import Lab
from scenarios.datasets import load
from scenarios.few_shot import FewShot
from strategies.prototypes.fecam import FeCAM
from strategies.prototypes.knn import KNN
from strategies.prototypes.protonet import ProtoNet
from strategies.prototypes.teen import TEEN
from tools import train


def toy(n_classes=8, per_class=6, files=None) -> Dataset:
    """Images whose pixels tell their position in the training set, classes one after another in turn."""
    labels = np.tile(np.arange(n_classes), per_class)
    images = np.zeros((len(labels), 2, 2, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 1, 1, 0] = np.arange(len(labels)) % 256, np.arange(len(labels)) // 256
    test = ImageSet(images[: 2 * n_classes] + 1, labels[: 2 * n_classes])
    return Dataset("toy", ImageSet(images, labels), test, tuple(f"c{c}" for c in range(n_classes)), files=files)


def positions(images: ImageSet) -> list[int]:
    raw = images.raw().astype(int)
    return (raw[:, 0, 0, 0] + 256 * raw[:, 1, 1, 0]).tolist()


# --- the scenario -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_sessions_have_so_many_shots_of_so_many_classes_and_the_base_has_everything(data):
    base, way, sessions = (data.draw(st.integers(1, 4)) for _ in range(3))
    shots = data.draw(st.integers(1, 6))
    pick, order = data.draw(st.sampled_from(["random", "first"])), data.draw(st.sampled_from(["natural", 1993]))
    dataset = toy(base + way * sessions)
    made = FewShot(base=base, way=way, shots=shots, pick=pick, order=order, seed=7)(dataset)
    first, *rest = made.tasks
    assert made.base_classes == base == first.n_new
    assert len(first.train) == 6 * base
    assert len(rest) == sessions
    labels = dataset.train.labels.numpy()
    for task in rest:
        assert (task.n_new, len(task.train)) == (way, way * shots)
        assert task.train.counts(task.n_seen)[list(task.new)].tolist() == [shots] * way
    seen = list(itertools.chain(*(positions(task.train) for task in made.tasks)))
    assert len(seen) == len(set(seen))
    for task in made.tasks:
        for place, label in zip(positions(task.train), task.train.labels.tolist(), strict=True):
            assert labels[place] == made.class_order[label]
    if order == "natural":
        assert made.class_order == tuple(range(len(dataset.classes)))
    if pick == "first":
        for task in rest:
            for label in task.new:
                own = np.flatnonzero(labels == made.class_order[label])[:shots].tolist()
                assert [p for p in positions(task.train) if labels[p] == made.class_order[label]] == own
    # After each session all test images of the classes seen are tested.
    assert len(made.test.of_classes(range(rest[-1].n_seen))) == len(dataset.test)


def test_another_seed_draws_other_shots_and_the_same_seed_the_same():
    first, again, other = (FewShot(base=4, way=2, shots=2, seed=seed)(toy()) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.name == "toy few-shot 4 + 2 x 2-way 2-shot, random"
    by_run = FewShot(base=4, way=2, shots=2, seed=None)
    drawn = [by_run.build(toy(), seed) for seed in (1, 2)]
    assert drawn[0].family == drawn[1].family is not None
    assert [made.fingerprint for made in drawn] == [first.fingerprint, other.fingerprint]
    assert all(made.base_classes == 4 for made in drawn)


def write_lists(folder, sessions):
    folder.mkdir(exist_ok=True)
    for number, lines in enumerate(sessions, 2):
        (folder / f"session_{number}.txt").write_text("\n".join(map(str, lines)) + "\n")


def test_published_lists_of_positions_are_taken_as_they_are(tmp_path):
    write_lists(tmp_path / "lists", [[12, 4, 5, 21], [6, 14, 7, 47]])
    made = FewShot(base=4, way=2, shots=2, lists=str(tmp_path / "lists"))(toy())
    assert [sorted(positions(task.train)) for task in made.tasks[1:]] == [[4, 5, 12, 21], [6, 7, 14, 47]]
    assert made.name.endswith("listed")


def test_published_lists_of_files_find_them_wherever_they_lie(tmp_path):
    files = tuple(f"mine/train/c{i % 8}/{i}.png" for i in range(48))
    write_lists(tmp_path / "lists", [[f"Other/images/c{i % 8}/{i}.png" for i in row] for row in ([4, 5], [6, 15])])
    made = FewShot(base=4, way=2, shots=1, lists=str(tmp_path / "lists"))(toy(files=files))
    assert [sorted(positions(task.train)) for task in made.tasks[1:]] == [[4, 5], [6, 15]]


@pytest.mark.parametrize(
    ("sessions", "files", "message"),
    [
        ([[4, 5]], None, r"session_3\.txt cannot be read"),
        ([[4, 48], [6, 7]], None, r"session_2\.txt: there is no training image 48; the data have 48"),
        (
            [[4, 6], [6, 7]],
            None,
            r"session_2\.txt: '6' is an image of class 6 'c6', and the session's classes are \[4, 5",
        ),
        ([[4, 12], [6, 7]], None, r"session_2\.txt names 2 images, in 2 lines, of class 4 'c4'; shots=1"),
        ([[4, 4, 5], [6, 7]], None, r"names 1 images, in 2 lines, of class 4"),
        ([["a/b.png", 5], [6, 7]], None, r"names files, 'a/b\.png' first; data from a folder have file names"),
        ([["c4/nine.png", 5], [6, 7]], True, r"no training images are called c4/nine\.png"),
    ],
)
def test_lists_that_do_not_fit_are_refused_with_the_line(tmp_path, sessions, files, message):
    write_lists(tmp_path / "lists", sessions)
    names = tuple(f"train/c{i % 8}/{i}.png" for i in range(48)) if files else None
    with pytest.raises(UserError, match=message):
        FewShot(base=4, way=2, shots=1, lists=str(tmp_path / "lists"))(toy(files=names))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": 0}, r"base=0; legal: a whole number from 1 to 7"),
        ({"base": 4, "way": 3}, r"base=4 leaves 4 of 8 classes, which way=3 does not divide"),
        ({"base": 4, "way": 2, "shots": 7}, r"shots=7, and class 4 'c4' has 6 training images"),
        ({"base": 4, "way": 2, "pick": "last"}, r"scenario\.pick"),
        ({"base": 4, "way": 2, "seed": -1}, r"seed=-1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        FewShot(**options)(toy())


def test_a_folder_of_images_knows_its_files(tmp_path):
    from PIL import Image

    for split, label, name in itertools.product(("train", "test"), "ab", ("1.png", "2.png")):
        place = tmp_path / "set" / split / label
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 3)).save(place / name)
    dataset = load(f"folder:{tmp_path / 'set'}", image_size=2)
    assert dataset.files == ("train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png")


# --- the numbers ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.int64, st.integers(2, 6).map(lambda k: (k, k)), elements=st.integers(0, 9)), st.data())
def test_numbers_of_base_and_new_classes_are_those_of_loops(counts, data):
    k = len(counts)
    counts[np.arange(k), np.arange(k)] += 1  # every class has a test image
    base = data.draw(st.integers(1, k))
    found = few_shot.after_task(counts, base)
    recall = [counts[c, c] / sum(counts[c]) for c in range(k)]
    b = sum(recall[:base]) / base
    assert found["base_accuracy"] == pytest.approx(b)
    assert found["accuracy"] == pytest.approx(sum(counts[c, c] for c in range(k)) / counts.sum())
    if base == k:
        rest = ("new_accuracy", "harmonic_mean", "false_negative_rate", "false_positive_rate")
        assert all(np.isnan(found[name]) for name in rest)
        return
    n = sum(recall[base:]) / (k - base)
    assert found["new_accuracy"] == pytest.approx(n)
    assert found["harmonic_mean"] == pytest.approx(2 * b * n / (b + n) if b + n else 0)
    missed = sum(counts[c, p] for c in range(base, k) for p in range(base)) / sum(
        counts[c].sum() for c in range(base, k)
    )
    taken = sum(counts[c, p] for c in range(base) for p in range(base, k)) / sum(counts[c].sum() for c in range(base))
    assert (found["false_negative_rate"], found["false_positive_rate"]) == (pytest.approx(missed), pytest.approx(taken))


def test_drop_and_mean_on_hand_numbers():
    steps = [few_shot.after_task(np.array(c), 1) for c in ([[4]], [[3, 1], [2, 2]], [[2, 1, 1], [2, 2, 0], [4, 0, 0]])]
    told = few_shot.summary(steps)
    assert told["accuracy"] == [1.0, 5 / 8, 4 / 12]
    assert told["performance_drop"] == pytest.approx(1 - 1 / 3)
    assert told["new_accuracy"][1:] == [0.5, 0.25]
    assert told["harmonic_mean"][1:] == [pytest.approx(0.6), pytest.approx(1 / 3)]
    assert told["average_harmonic_mean"] == pytest.approx((0.6 + 1 / 3) / 2)
    assert few_shot.harmonic_mean(0.0, 0.0) == 0
    assert np.isnan(few_shot.summary(steps[:1])["performance_drop"])
    assert np.isnan(few_shot.summary([])["average_harmonic_mean"])
    with pytest.raises(ValueError, match="base_classes must be from 1 to the 2 classes seen, not 3"):
        few_shot.after_task(np.eye(2, dtype=int), 3)


def digits_run(tmp_path, capsys, *words):
    words = ["--config", "configs/protocols/digits_few_shot.yaml", *words, "--run_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        config.main(train.main, words)
    assert stop.value.code == 0
    return json.loads((tmp_path / "run/results.json").read_text()), capsys.readouterr().out, tmp_path / "run"


def test_a_run_tells_base_from_new_in_its_results_its_report_and_on_the_terminal(tmp_path, capsys):
    content, shown, folder = digits_run(tmp_path, capsys, "--config", "configs/strategies/teen.yaml")
    own = content["few_shot"]
    assert (own["base_classes"], own["sessions"], own["shots"]) == (6, 2, [5, 5])
    scores, matrix = own["metrics"]["linear"], content["metrics"]["linear"]
    assert scores["accuracy"] == pytest.approx(matrix["seen_accuracy"])
    assert scores["base_accuracy"][-1] == pytest.approx(np.mean(content["per_class_accuracy"]["linear"][:6]))
    assert scores["new_accuracy"][-1] == pytest.approx(np.mean(content["per_class_accuracy"]["linear"][6:]))
    assert scores["new_accuracy"][0] is None
    numbers = {*few_shot.BY_TASK, "performance_drop", "average_harmonic_mean"}
    assert set(scores) == numbers == set(own["definitions"])
    drop = f"{100 * scores['performance_drop']:.1f}"
    for text in (shown, (folder / "report.md").read_text()):
        assert "harmonic mean" in text and "performance drop" in text and drop in text
    header, rows = few_shot_report.rows(content, "linear")
    assert len(header) == len(rows[0]) == 6 and len(rows) == 3


def test_other_scenarios_have_no_such_numbers():
    assert results(Lab(ProtoNet).experiment(), [])["few_shot"] is None


# --- prototypes -------------------------------------------------------------------------------------------------------


def test_the_worked_vector():
    base = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    new = torch.tensor([[3.0, 4, 0]], dtype=torch.float64)
    weights = similarity_weights(new, base, 16.0)
    assert torch.allclose(weights, torch.tensor([[0.039166, 0.960834]], dtype=torch.float64), atol=1e-6)
    moved = calibrated(new, base, 1.0, 16.0, "released")
    assert torch.allclose(moved, torch.tensor([[0.040728, 0.999170, 0]], dtype=torch.float64), atol=1e-6)
    half = calibrated(new, base, 0.5, 16.0, "released")
    assert torch.allclose(half, torch.tensor([[0.320364, 0.899585, 0]], dtype=torch.float64), atol=1e-6)
    # The text leaves the weighted sum as it is.
    plain = calibrated(new, base, 0.5, 16.0)
    assert torch.allclose(plain, 0.5 * torch.tensor([[0.639166, 1.760834, 0]], dtype=torch.float64), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.floats(0, 1), st.floats(0, 40))
def test_calibration_is_that_of_loops_and_each_row_depends_on_its_own_class_alone(seed, n, b, alpha, tau):
    draws = torch.Generator().manual_seed(seed)
    new, base = (torch.randn(k, 6, generator=draws, dtype=torch.float64) for k in (n, b))
    out = calibrated(new, base, alpha, tau)
    for i in range(n):
        own = new[i] / new[i].norm()
        cosines = [float(own @ row / row.norm()) for row in base]
        raised = [np.exp(tau * (c - max(cosines))) for c in cosines]
        fused = sum(r / sum(raised) * row / row.norm() for r, row in zip(raised, base, strict=True))
        assert torch.allclose(out[i], (1 - alpha) * own + alpha * fused, atol=1e-10)
        assert torch.allclose(calibrated(new[i : i + 1], base, alpha, tau)[0], out[i], atol=1e-12)


def test_the_ends_of_alpha_and_tau():
    draws = torch.Generator().manual_seed(0)
    new, base = (torch.randn(k, 5, generator=draws, dtype=torch.float64) for k in (3, 4))
    unit = F.normalize(base, dim=1)
    assert torch.equal(calibrated(new, base, 0.0, 16.0), F.normalize(new, dim=1))
    assert torch.allclose(calibrated(new, base, 1.0, 0.0), unit.mean(0).expand(3, 5))
    nearest = (F.normalize(new, dim=1) @ unit.T).argmax(1)
    assert torch.allclose(calibrated(new, base, 1.0, 1e6), unit[nearest])
    released = calibrated(new, base, 1.0, 3.0, "released")
    assert torch.allclose(released.norm(dim=1), torch.ones(3, dtype=torch.float64))


class Seen(torch.nn.Module):
    """Images are their features."""

    num_features = 4

    def forward(self, x):
        return x.flatten(1)


def few_shot_experiment(kind, **options):
    """Base classes with many images in a half-space, new ones with few; the network is frozen."""
    rng = np.random.default_rng(5)
    centres = rng.integers(40, 216, (7, 4))
    pixels = np.concatenate([centres + rng.normal(0, 18, (7, 4)) for _ in range(20)]).clip(0, 255).astype(np.uint8)
    labels = np.tile(np.arange(7), 20)
    dataset = Dataset(
        "points",
        ImageSet(pixels.reshape(-1, 2, 2, 1), labels),
        ImageSet(pixels.reshape(-1, 2, 2, 1), labels),
        tuple("abcdefg"),
    )
    scenario = FewShot(base=3, way=2, shots=3)(dataset)
    experiment = Lab(kind).experiment()
    return dataclasses.replace(
        experiment,
        scenario=scenario,
        build=lambda: kind(Network(Seen(), CosineHead(4), frozen=True), **options),
        augmentation=experiment.augmentation,
    )


def trace(kind, **options):
    """The strategy's state and scores of all test images after each task."""
    experiment, out = few_shot_experiment(kind, **options), []

    def note(records, strategy, exemplars):
        x = experiment.place(0).augmentation.test(experiment.scenario.test.gather())
        with torch.no_grad():
            out.append((strategy.rows().clone() if hasattr(strategy, "rows") else None, strategy(x), strategy))

    run(experiment, on_task=note)
    return out, experiment


def test_alpha_0_is_protonet_bit_for_bit():
    for (rows, scores, _), (other_rows, other_scores, _) in zip(
        trace(TEEN, alpha=0.0)[0], trace(ProtoNet)[0], strict=True
    ):
        assert torch.equal(rows, other_rows) and torch.equal(scores, other_scores)


def test_base_rows_keep_every_bit_and_new_rows_stay_as_calibrated():
    steps, _ = trace(TEEN, alpha=0.6)
    plain, _ = trace(ProtoNet)
    for (before, *_), (after, *_) in itertools.pairwise(steps):
        assert torch.equal(after[: len(before)], before)
    assert torch.equal(steps[-1][0][:3], plain[-1][0][:3])
    assert not torch.allclose(steps[-1][0][3:], plain[-1][0][3:])


@pytest.mark.parametrize("fusion", ["paper", "released"])
def test_calibrated_rows_have_the_same_bits_however_many_come_after_them(fusion):
    draws = torch.Generator().manual_seed(0)  # 12 numbers and 6 classes: a plain product differs with its height
    new, base = (torch.randn(k, 12, generator=draws, dtype=torch.float64) for k in (40, 6))
    whole, weights = calibrated(new, base, 0.5, 16.0, fusion), similarity_weights(new, base, 16.0)
    for n in range(41):
        assert torch.equal(calibrated(new[:n], base, 0.5, 16.0, fusion), whole[:n])
        assert torch.equal(similarity_weights(new[:n], base, 16.0), weights[:n])


def test_prototypes_are_means_and_scores_cosines():
    steps, experiment = trace(ProtoNet)
    place = experiment.place(0)
    means = []
    for task in experiment.scenario.tasks:
        x = place.augmentation.test(task.train.gather()).flatten(1)
        means += [x[task.train.labels == label].double().mean(0) for label in task.new]
    x = place.augmentation.test(experiment.scenario.test.gather()).flatten(1).double()
    wanted = torch.stack([F.cosine_similarity(x, mean[None], dim=1) for mean in means], 1)
    assert torch.allclose(steps[-1][1].double(), wanted, atol=1e-6)
    euclidean, _ = trace(ProtoNet, distance="euclidean")
    distances = torch.stack([(x - mean).square().sum(1) for mean in means], 1)
    assert torch.allclose(-euclidean[-1][1].double(), distances, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([0.05, 0.5]))
def test_votes_are_those_of_scikit_learn(seed, k, temperature):
    draws = torch.Generator().manual_seed(seed)
    kept = KeptFeatures(5, 4)
    kept.grow(3)
    vectors, owners = [], []
    for label, n in enumerate((4, 2, 6)):  # of the last, two find no room
        own = torch.randn(n, 5, generator=draws)
        kept.keep(own[:1], label)
        kept.keep(own[1:], label)
        vectors.append(own[:4])
        owners += [label] * min(n, 4)
    queries = torch.randn(7, 5, generator=draws)
    votes = kept.votes(queries, k, temperature)
    sk = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature))
    wanted = sk.fit(torch.cat(vectors).numpy(), owners).predict_proba(queries.numpy())
    assert torch.allclose(votes / votes.sum(1, keepdim=True), torch.from_numpy(wanted).float(), atol=1e-4)


def test_knn_keeps_so_many_of_each_class_and_a_budget_may_decide_how_many():
    steps, experiment = trace(KNN, k=1, per_class=3)
    strategy = steps[-1][2]
    assert strategy.kept.counts.tolist() == [3] * 7
    # One neighbour among the three images that were learned of each new class: they are found again.
    task = experiment.scenario.tasks[-1]
    x = experiment.place(0).augmentation.test(task.train.gather())
    assert torch.equal(strategy(x).argmax(1), task.train.labels)
    sized = few_shot_experiment(KNN, per_class=None)
    bytes_with_3 = 7 * (3 * 4 * 4 + 8) + 4  # float32 features of four numbers and a count each; the head's scale
    for more, wanted in ((0, 3), (7 * 16 - 1, 3), (7 * 16, 4)):
        sized.memory = Memory(budget=bytes_with_3 + more)
        sized = dataclasses.replace(sized)  # limits are fixed once asked for
        assert sized.sized == ("per_class", wanted)
    with pytest.raises(UserError, match=r"strategy\.k: 0 must be a whole number >= 1"):
        trace(KNN, k=0, per_class=3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_covariances_learned_in_pieces_are_those_of_all(seed, sizes):
    draws = torch.Generator().manual_seed(seed)
    means, covariances = ClassMeans(4), ClassCovariances(4)
    for part in (means, covariances):
        part.grow(2)
    xs, ys = [], []
    for n in sizes:
        x, y = torch.randn(n, 4, generator=draws), torch.randint(0, 2, (n,), generator=draws)
        covariances.learn(x, y, means)
        means.learn(x, y)
        xs.append(x)
        ys.append(y)
    x, y = torch.cat(xs), torch.cat(ys)
    for label in range(2):
        own = x[y == label].double()
        wanted = torch.cov(own.T) if len(own) > 1 else torch.zeros(4, 4, dtype=torch.float64)
        assert torch.allclose(covariances.matrices()[label], wanted, atol=1e-5)


def test_fecam_is_the_distance_by_explicit_inverses():
    steps, experiment = trace(FeCAM, alpha=0.3, beta=0.7, tau=9.0, ridge=0.5)
    place, x_of, means, covariances = experiment.place(0), {}, [], []
    for task in experiment.scenario.tasks:
        x = place.augmentation.test(task.train.gather()).flatten(1).double()
        for label in task.new:
            x_of[label] = x[task.train.labels == label]
            means.append(x_of[label].mean(0))
            covariances.append(torch.cov(x_of[label].T))
    unit = [mean / mean.norm() for mean in means]
    centres, correlations = [], []
    for label in range(7):
        own, covariance = unit[label], covariances[label]
        if label >= 3:
            w = torch.softmax(9.0 * torch.stack([own @ row for row in unit[:3]]), 0)
            fused = sum(w[b] * unit[b] for b in range(3))
            own = 0.7 * own + 0.3 * fused / fused.norm()
            covariance = 0.7 * (covariance + sum(w[b] * covariances[b] for b in range(3)))
        centres.append(own / own.norm())
        full = covariance + 0.5 * torch.eye(4, dtype=torch.float64)
        spread = full.diagonal().sqrt()
        correlations.append(full / torch.outer(spread, spread))
    x = F.normalize(place.augmentation.test(experiment.scenario.test.gather()).flatten(1).double(), dim=1)
    wanted = torch.stack(
        [
            -torch.stack([(v - c) @ torch.linalg.inv(m) @ (v - c) for v in x])
            for c, m in zip(centres, correlations, strict=True)
        ],
        1,
    )
    assert torch.allclose(steps[-1][1].double(), wanted, rtol=1e-4, atol=1e-5)


def test_fecam_with_nothing_to_borrow_takes_new_classes_as_they_are():
    steps, _ = trace(FeCAM, alpha=0.0, beta=0.0)
    own = steps[-1][2]
    assert torch.allclose(own.centres(), F.normalize(own.prototypes.means, dim=1))
    full = own.covariances.matrices() + torch.eye(4, dtype=torch.float64)
    spread = full.diagonal(dim1=1, dim2=2).sqrt()
    assert torch.allclose(own.correlations(), full / (spread[:, :, None] * spread[:, None, :]))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (TEEN, {"alpha": 1.5}, r"strategy\.alpha: 1\.5 must be a finite number >= 0 and <= 1"),
        (TEEN, {"fusion": "mine"}, r"strategy\.fusion"),
        (FeCAM, {"ridge": 0.0}, r"strategy\.ridge: 0\.0 must be a finite number > 0"),
    ],
)
def test_options_of_methods_are_checked_before_training(kind, options, message):
    with pytest.raises(UserError, match=message):
        few_shot_experiment(kind, **options).check()


def test_a_result_survives_json():
    experiment = few_shot_experiment(TEEN)
    records, *_ = run(experiment)
    told = results(experiment, records)["few_shot"]
    assert jsonable(json.loads(json.dumps(told))) == told


def test_a_comparison_tells_base_from_new_and_pairs_the_harmonic_mean(tmp_path, capsys):
    contents = {}
    for name, seed in itertools.product(("teen", "protonet"), (0, 1)):
        words = ["--config", f"configs/strategies/{name}.yaml", "--seed", str(seed), "--trainer.epochs", "1"]
        words += ["--scenario.seed", "null"]  # each run draws its own shots
        contents[name, seed], *_ = digits_run(tmp_path / f"{name}{seed}", capsys, *words)
    comparison = compare([tmp_path])
    (section,) = comparison.sections
    assert section.few_shot and section.metrics == METRICS + FEW_SHOT
    rows = {row.label: row for row in section.rows}
    for name, label in (("teen", "TEEN"), ("protonet", "ProtoNet")):
        for metric in ("base_accuracy", "new_accuracy", "harmonic_mean"):
            wanted = [contents[name, seed]["few_shot"]["metrics"]["linear"][metric][-1] for seed in (0, 1)]
            assert rows[label].values(metric) == wanted
        drops = [contents[name, seed]["few_shot"]["metrics"]["linear"]["performance_drop"] for seed in (0, 1)]
        assert rows[label].values("performance_drop") == drops
    teen, protonet = (rows[label].values("harmonic_mean") for label in ("TEEN", "ProtoNet"))
    (pair,) = [pair for pair in section.pairs if pair.metric == "harmonic_mean"]
    sign = 1 if pair.first == rows["TEEN"].id else -1
    assert pair.mean == pytest.approx(sign * (teen[0] - protonet[0] + teen[1] - protonet[1]) / 2)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tables.terminal(comparison, []))
    shown = console.export_text()
    assert "after the last session, %" in shown and "harmonic mean" in shown
    head, *lines = csv.reader(io.StringIO(tables.as_csv(comparison)))
    column = head.index("harmonic_mean_mean")
    assert {line[head.index("method")]: float(line[column]) for line in lines} == {
        label: pytest.approx(np.mean(values)) for label, values in (("TEEN", teen), ("ProtoNet", protonet))
    }
    told = tables.as_json(comparison, [])["scenarios"][0]["rows"]
    assert all(set(FEW_SHOT) <= set(row) for row in told)
    assert "Base and new classes" in page.page(comparison, [])
