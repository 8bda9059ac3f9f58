"""Metrics against other libraries and by hand; evaluate.py over runs made of real digits."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

import common
import evaluate
from kit import judge, metrics
from kit.data import embedded_mnist
from kit.files import UserError, load_arrays, save_arrays
from kit.words import DIGITS, HELDOUT_TEMPLATES, TRAIN_TEMPLATES, phrasings

ATTRIBUTES = {  # as in config.json: where each word begins
    "thickness": {"thin": 2.2, "thick": 2.9},
    "slant": {"leaning left": -5.0, "leaning right": 21.0},
}
ASKED = (0, 0), (-1, 0), (0, 1), (1, -1)


def features(n, mix=0.0, mean=0.0, seed=1):
    """Correlated features (n, 64)."""
    matrix = np.random.default_rng(2).normal(size=(64, 64)) + mix
    return np.random.default_rng(seed + n).normal(size=(n, 64)) @ matrix / 8 + mean


@pytest.mark.parametrize("n", [40, 3000])  # fewer images than features, and more
def test_fid_is_that_of_pytorch_fid_and_of_torch_fidelity(monkeypatch, n):
    fid_score = pytest.importorskip("pytorch_fid.fid_score", reason="pip install pytorch-fid")
    oracle = pytest.importorskip("torch_fidelity.metric_fid", reason="pip install torch-fidelity")
    sqrtm = fid_score.linalg.sqrtm  # SciPy 1.18 has no disp
    monkeypatch.setattr(fid_score.linalg, "sqrtm", lambda x, disp=True: (sqrtm(x), 0))
    a, b = features(3000), features(n, 0.1, 0.3)
    got = common.frechet_distance(a, b)
    moments = [x for each in (a, b) for x in (each.mean(0), np.cov(each, rowvar=False))]
    right = fid_score.calculate_frechet_distance(*moments)
    assert abs(got - right) / right < 1e-6
    statistics = [oracle.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    right = oracle.fid_statistics_to_metric(*statistics, False)[oracle.KEY_METRIC_FID]
    assert abs(got - right) / right < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-6), (np.float32, 1e-4)])
def test_kid_is_that_of_torch_fidelity(dtype, tolerance):
    oracle = pytest.importorskip("torch_fidelity.metric_kid", reason="pip install torch-fidelity")
    a, b = features(300).astype(dtype), features(300, 0.1, 0.3, 7).astype(dtype)
    pair, options = map(torch.from_numpy, (a, b)), {"kid_subsets": 1, "kid_subset_size": 300}
    right = oracle.kid_features_to_metric(*pair, **options, verbose=False)
    right = right[oracle.KEY_METRIC_KID_MEAN]
    got, _ = metrics.kid(a, b)
    assert right > 0.1 and abs(got - right) / right < tolerance


@pytest.mark.parametrize("mean", [0.0, 0.3, 30.0])
def test_density_and_coverage_are_those_of_prdc(mean):
    oracle = pytest.importorskip("prdc", reason="pip install prdc")
    real, drawn = features(200), features(200, 0.05, mean, 7)
    right = oracle.compute_prdc(real, drawn, nearest_k=5)
    got = metrics.density_coverage(real, drawn)
    assert got == pytest.approx((right["density"], right["coverage"]), rel=1e-6, abs=0)
    assert (mean == 30) == (got[1] == 0)


def test_diversity_intervals_copies_and_confusions_by_hand():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
    x = pixels[:6].reshape(6, -1) / 255
    pairs = [((x[i] - x[j]) ** 2).mean() for i in range(6) for j in range(i)]
    got = metrics.mse_diversity(pixels, np.array([3, 3, 3, 3, 3, 3, 8]))
    assert got.keys() == {3} and abs(got[3] - np.mean(pairs)) < 1e-12  # one image has none
    # Wilson's, for 95 of 100: (0.95 + 0.019207 -+ 0.046806) / 1.038415.
    assert np.abs(np.subtract(metrics.wilson(0.95, 100), (0.88825, 0.97846))).max() < 1e-4
    assert metrics.wilson(1.0, 500)[1] <= 1 + 1e-12 and metrics.wilson(0.0, 10)[0] >= -1e-12
    distances = np.float64([[0, 0], [0, 5], [1, 3.1], [1, 2.9], [2, 2]])
    assert metrics.copied(distances) == 0.6
    matrix = metrics.confusion(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), 3)
    assert matrix.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0]]


def test_similarity_is_with_the_own_prompt_and_with_all_other_classes():
    texts = np.float64([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.6, 0.8]])
    images = np.float64([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1], [0, 0, 1]])
    labels = np.array([0, 1, 2, 2])
    own, wrong = metrics.similarity(images, texts, labels)
    assert abs(own - np.mean([1, 0.8, 1, 0.8])) < 1e-12
    # The mean prompts: (1, 0, 0), (0, 1, 0), (0, 0.3, 0.9).
    assert abs(wrong - np.mean([0, (0.6 + 0.24) / 2, 0, 0])) < 1e-12
    assert np.isnan(metrics.similarity(images, texts, labels * 0)[1])


def test_obedience_counts_all_words_and_each_alone():
    asked = np.int8([[0, 0], [0, 0], [1, -1], [1, -1]])
    states = np.int8([[1, -1], [0, 0], [1, 0], [1, -1]])
    shares = metrics.obedience(asked, states, np.array([True, True, True, False]))
    assert shares[0, 0]["as_asked"] == 1 and np.isnan(shares[0, 0]["single"]).all()
    row = shares[1, -1]
    asked, states = np.int8([[0, 0], [1, 0], [1, -1]]), np.int8([[0, 0], [1, -1], [0, 0]])
    one = metrics.obedience(asked, states, np.ones(3))
    assert (one[1, 0]["without_asking"], one[1, -1]["without_asking"]) == (0, 1), "one of the words"
    assert row["as_asked"] == 0.5 and row["single"].tolist() == [1, 0.5] and row["everything"] == 0
    assert row["without_asking"] == row["everything_without_asking"] == 0.5 == row["accuracy"]


def digits(n, split="train"):
    """n real digits in turn of the classes, shifted by a pixel -> images, labels."""
    pixels, labels = embedded_mnist(split)
    order = torch.stack([(labels == y).nonzero()[:60, 0] for y in range(10)], 1).flatten()[:n]
    return np.roll(pixels[order].numpy(), 1, 2), labels[order].numpy()


def prompts(n, templates=TRAIN_TEMPLATES):
    texts = phrasings(evaluate.Config(), templates)
    return np.array([texts[i % 10][i // 10 % len(texts[0])] for i in range(n)])


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluator")
    return evaluate.Evaluator(evaluate.Config(data_dir=folder, clip="tiny", device="cpu"))


def score(evaluator, images, labels, texts=None, training=None):
    texts = prompts(len(labels)) if texts is None else texts
    return evaluator.score(evaluator.look(images, labels, texts, training))


def same(row, **right):
    assert {name: row[name] for name in right} == pytest.approx(right, rel=6e-5, abs=2e-6)


def test_the_numbers_stay(evaluator):
    """A change of code or of a network in assets/ shows here."""
    row = score(evaluator, *digits(600), training=embedded_mnist("train"))
    same(row, fid=0.85591, kid=0.0050162, kid_se=0.0085638, density=0.90733, coverage=0.90667)
    same(row, mse_diversity=0.10421, of_real=0.98147, copied=0)
    same(row, fd_pixels=4.9729, fd_style=0.19144, nearer_training=0.545)
    same(row, clip_similarity=0.6432, with_wrong_prompts=0.084174)
    same(row, accuracy=1, accuracy_low=0.99364, accuracy_high=1)
    assert row["reference"] == 2500
    real, noise = evaluator.baselines(200, embedded_mnist("train"))
    same(real, fid=0.72524, kid=-0.054314, kid_se=0.0094071, density=0.984, coverage=0.985)
    same(real, mse_diversity=0.10306, of_real=0.97063, accuracy=0.995)
    same(real, fd_pixels=2.4773, fd_style=0.031029, accuracy_low=0.97223, copied=0)
    same(noise, fid=305.34, kid=203.92, kid_se=3.7587, density=0, coverage=0, copied=0)
    same(noise, mse_diversity=0.16828, of_real=1.5848, fd_style=78.457, accuracy=0.1)


def test_the_reference_is_held_out(evaluator):
    """From what is trained on, and from the real images that are measured."""
    pixels, labels = evaluator.held_out
    assert np.bincount(labels).tolist() == [500] * 10
    assert len({*map(bytes, pixels)} | {*map(bytes, embedded_mnist("train")[0].numpy())}) == 25_000
    assert {len(x) for x in (*evaluator.reference.values(), evaluator.real[0])} == {2500}
    assert {*map(bytes, pixels[:2500])}.isdisjoint(map(bytes, evaluator.real[0]))
    assert np.bincount(evaluator.real[1]).tolist() == [250] * 10


def test_planted_faults_show(evaluator):
    images, labels = digits(600)
    fair = score(evaluator, images, labels)
    collapsed = score(evaluator, np.where((labels == 3)[:, None, None], images[3], images), labels)
    assert 0.8 < collapsed["of_real"] < fair["of_real"]
    one = score(evaluator, images[:10][labels], labels)
    assert one["mse_diversity"] == 0 and one["coverage"] < 0.4 and one["fid"] > 5 * fair["fid"]
    swapped = np.where(labels == 3, 8, np.where(labels == 8, 3, labels))
    assert score(evaluator, images, swapped)["accuracy"] < fair["accuracy"] - 0.15
    row = score(evaluator, images, labels, np.random.default_rng(0).permutation(prompts(600)))
    assert row["clip_similarity"] < fair["clip_similarity"] - 0.4
    thick = ndimage.grey_dilation(images, (1, 2, 2))
    row = score(evaluator, thick, labels)
    assert row["fd_style"] > 5 * fair["fd_style"] and row["fd_pixels"] > 1.5 * fair["fd_pixels"]
    assert one["fd_pixels"] > 2 * fair["fd_pixels"] and one["fd_style"] > fair["fd_style"]
    training = [array[::100] for array in embedded_mnist("train")]
    row = score(evaluator, *map(np.asarray, training), training=training)
    assert row["copied"] == 1 and row["nearer_training"] == 1
    held_out = evaluator.reference["pixels"][:200], evaluator.held_out[1][:200]
    assert score(evaluator, *held_out, training=training)["nearer_training"] == 0


def test_of_what_nobody_asked_for_the_mix_of_classes_is_told_and_taken_out(evaluator):
    images, labels = digits(600)
    rows = np.flatnonzero((labels != 1) | (np.arange(600) < 60))  # few ones
    row = score(evaluator, images[rows], labels[rows] * 0 - 1)
    shares = np.array(row["class_mix"].split(), float)
    assert abs(shares.sum() - 1) < 0.01 and shares[1] < 0.03 and "accuracy" not in row
    assert row["fid_balanced"] < row["fid"]
    again = labels[rows][metrics.balanced(labels[rows])]
    assert {*np.bincount(again)} == {len(rows) // 10}


def test_witnesses_are_as_defined():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (900, 28, 28)).astype(np.uint8)
    flat, see = pixels.reshape(900, -1) / 255, metrics.components(pixels)
    values = np.linalg.svd(flat - flat.mean(0), compute_uv=False)[:64] ** 2 / 899
    assert np.abs(np.sort(see(pixels).var(0, ddof=1))[::-1] - values).max() < 1e-9
    style = np.float64([[1, 2], [3, np.nan], [5, 4]])
    expected = (np.float64([[0, 6]]) - [3, 2]) / np.std([[1, 2], [3, 0], [5, 4]], axis=0)
    got = metrics.standardised(style)(np.float64([[np.nan, 6]]))
    assert np.abs(got - expected).max() < 1e-6


def test_few_or_equal_real_images_leave_empty_what_needs_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "REFERENCE", 190)
    few = evaluate.Evaluator(evaluate.Config(data_dir=tmp_path, clip="tiny", device="cpu"))
    assert "190 held-out images, not 200: FID" in capsys.readouterr().err
    few.diversity[1] = 0  # all ones are alike
    row = score(few, *digits(100))
    assert np.isnan(row["fid"]) and np.isnan(row["coverage"]) and row["accuracy"] > 0.95
    assert 0.5 < row["of_real"] < 1.5
    few.diversity *= 0
    assert np.isnan(score(few, *digits(100))["of_real"])


def make_run(folder, n=40, **facts):
    """What a finished run leaves for evaluate.py: real digits as its samples."""
    parts, crc32 = [], 0
    for kind, scale in (("trained", 1.0), ("trained", 2.0), ("held-out", 2.0), ("words", 2.0)):
        images, labels = digits(20 if kind == "held-out" else n)
        said = np.arange(len(labels)) // 10 % 4 * (kind == "words")
        text = prompts(len(labels), HELDOUT_TEMPLATES if kind == "held-out" else TRAIN_TEMPLATES)
        part = {"images": images, "labels": labels, "prompts": text, "asked": np.int8(ASKED)[said]}
        parts.append(part | {"kind": np.full(len(labels), kind), "scale": labels * 0 + scale})
    if folder.name == "a0_uncond":
        parts[1:], facts = [], {"attributes": {}} | facts
        parts[0] |= {"labels": np.full(n, -1), "kind": np.full(n, "unconditional")}
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    save_arrays(folder / "images" / "samples.npz", arrays)
    for array in embedded_mnist("train"):
        crc32 = zlib.crc32(array.numpy(), crc32)
    known = {"script": folder.name, "seed": 0, "classes": DIGITS, "family": "diffusion"}
    known |= {"emnist_split": "letters", "data_source": "embedded", "data_crc32": crc32}
    known |= {"attributes": ATTRIBUTES} | facts
    known = {name: value for name, value in known.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(known))


def flags(folder):
    return ["--out", f"{folder}/results", "--data-dir", f"{folder}/data", "--clip", "tiny"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with two runs that evaluate.py has measured, and some that it leaves out."""
    folder = tmp_path_factory.mktemp("measured")
    mnist = folder / "results/mnist"
    make_run(mnist / "a4_full")
    make_run(mnist / "a0_uncond", data_crc32=None, data_source=None, emnist_split=None)
    make_run(mnist / "a1_cond", sampler="DDIM")  # config.json of an earlier version
    make_run(mnist / "a2_clip", classes=DIGITS[::-1])
    make_run(mnist / "a4_copy", script="a4_full")
    (mnist / "cgan" / "images").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "REFERENCE", 400)
        patch.setattr(judge, "TAUGHT", 10**6)
        evaluate.main(flags(folder))
    return folder


def test_a_row_for_every_group_and_floor_is_written_and_what_figures_need(measured):
    mnist = measured / "results/mnist"
    for name in evaluate.TABLES:
        table = pd.read_csv(mnist / f"a4_full/metrics/{name}.csv")
        got = table[["model", "kind", "scale", "n"]].fillna(0).values.tolist()
        groups = ("trained", 1, 40), ("trained", 2, 40), ("held-out", 2, 20)
        baselines = [[x, "trained", 0, n] for n in (20, 40) for x in ("real images", "noise")]
        assert got == [["a4_full", *group] for group in groups] + baselines
        assert {*table["extractor"]} == {"judge"} and {*table["text_encoder"]} == {"tiny"}
    asked = pd.read_csv(mnist / "a4_full/metrics/attributes.csv")
    words = ["nothing", "thin", "leaning right", "thick, leaning left"]
    assert asked["asked"].tolist() == words and {*asked["n"]} == {10}
    assert asked["kind"].tolist() == ["nothing", "one word", "one word", "held-out pair"]
    assert asked["thickness"].isna().tolist() == [True, False, True, False]
    judged = load_arrays(mnist / "a4_full/metrics/judged.npz")
    samples = load_arrays(mnist / "a4_full/images/samples.npz")
    assert judged["read"].shape == (140,)
    assert (judged["read"] == samples["labels"]).mean() > 0.95
    assert (rows := judged["nearest_rows"]).tolist() == [*range(26), *range(40, 66)]
    shown, training = samples["images"][rows], embedded_mnist("train")[0].numpy()
    distances = ((shown / 255 - judged["nearest"] / 255) ** 2).mean((1, 2)) ** 0.5
    assert np.abs(distances - metrics.nearest(shown, training)[1][:, 0]).max() < 1e-9
    assert {*load_arrays(mnist / "a0_uncond/metrics/judged.npz")} == {"read"}
    assert load_arrays(mnist / "compare/real.npz")["images"].shape == (260, 28, 28)
    row = pd.read_csv(mnist / "a0_uncond/metrics/mse_diversity.csv").iloc[0]
    assert row["kind"] == "unconditional" and row["of_real"] > 0.8 and np.isnan(row["copied"])


def test_other_runs_are_left_out_with_a_line_each(measured, monkeypatch, capsys):
    found = evaluate.find_runs(evaluate.Config.parse(flags(measured)))
    lines = capsys.readouterr().err.splitlines()
    assert [folder.name for folder in found] == ["a0_uncond", "a4_full"] and len(lines) == 3
    for line, why in zip(lines, ("earlier version", "other classes", "renamed run of a4_full")):
        assert line.startswith("left out: ") and why in line
    for names in (["a3_cfg.py"], ["cgan", "a4_full"]):
        with pytest.raises(UserError, match=f"no samples of {names[0][:4]}.*first: python"):
            evaluate.find_runs(evaluate.Config.parse([*names, *flags(measured)]))
    closed, access, glob = measured / "results/mnist/a4_full", os.access, Path.glob
    monkeypatch.setattr(os, "access", lambda path, how: Path(path) != closed and access(path, how))
    seen = lambda path, how: [x for x in glob(path, how) if closed not in x.parents]  # noqa: E731
    monkeypatch.setattr(Path, "glob", seen)
    with pytest.raises(UserError, match="no samples of a4_full"):
        evaluate.find_runs(evaluate.Config.parse(["a4_full", *flags(measured)]))
    assert f"left out: {closed}, which may not be read" in capsys.readouterr().err


def test_a_run_is_measured_again_only_if_something_changed(measured):
    config, folder = evaluate.Config.parse(flags(measured)), measured / "results/mnist/a4_full"
    assert evaluate.is_measured(folder, config)
    assert evaluate.is_measured(measured / "results/mnist/a0_uncond", config)  # no attributes.csv
    for changed in ("--clip=ViT-B/32", "--extractor=inception"):
        assert not evaluate.is_measured(folder, evaluate.Config.parse([*flags(measured), changed]))
    before = (samples := folder / "images" / "samples.npz").read_bytes()
    samples.write_bytes(before[:999])
    assert not evaluate.is_measured(folder, config)
    with pytest.raises(UserError, match="samples.npz cannot be read"):
        evaluate.main(["a4_full", *flags(measured)])
    samples.write_bytes(before)
