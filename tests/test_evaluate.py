"""Metrics against what can be worked out by hand; the two commands over runs of real digits."""

import csv
import hashlib
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, data_args, no_answer
from matplotlib.figure import Figure
from matplotlib.image import imread

import common
import compare
import evaluate
from kit import base, datasets, downloads, images, judge, metrics, samples
from kit import clip as tiny


def gaussian(mean, deviation, n=500):
    """Features (n, d) whose sample mean is exactly so and whose covariance is exactly diagonal."""
    x = np.random.default_rng(0).normal(size=(n, len(mean)))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x * deviation + mean


def test_fid_of_two_gaussians_has_a_closed_form():
    a, b = gaussian([0, 1, 2], [1, 2, 3]), gaussian([1, 1, 4], [2, 2, 0.5], 300)
    assert abs(common.frechet_distance(a, b) - (1 + 4 + 1 + 0 + 2.5**2)) < 1e-9
    assert abs(common.frechet_distance(a, a)) < 1e-9


@pytest.mark.parametrize("n", [40, 3000])  # fewer images than features, and more
def test_fid_is_that_of_pytorch_fid_and_of_torch_fidelity(monkeypatch, n):
    fid_score = pytest.importorskip("pytorch_fid.fid_score", reason="pip install pytorch-fid")
    sqrtm = fid_score.linalg.sqrtm
    monkeypatch.setattr(
        fid_score.linalg, "sqrtm", lambda x, disp=True: (sqrtm(x), 0)
    )  # SciPy 1.18 has no disp
    a, b = features(3000), features(n, 0.1, 0.3)
    moments = [x for each in (a, b) for x in (each.mean(0), np.cov(each, rowvar=False))]
    got = common.frechet_distance(a, b)
    right = fid_score.calculate_frechet_distance(*moments)
    assert abs(got - right) / right < 1e-6
    oracle = pytest.importorskip("torch_fidelity.metric_fid", reason="pip install torch-fidelity")
    statistics = [oracle.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    right = oracle.fid_statistics_to_metric(*statistics, False)[oracle.KEY_METRIC_FID]
    assert abs(got - right) / right < 1e-6


def features(n, mix=0.0, mean=0.0, seed=1):
    """Features (n, 64), correlated."""
    matrix = np.random.default_rng(2).normal(size=(64, 64)) + mix
    return np.random.default_rng(seed + n).normal(size=(n, 64)) @ matrix / 8 + mean


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-6), (np.float32, 1e-4)])
def test_kid_is_that_of_torch_fidelity(dtype, tolerance):
    oracle = pytest.importorskip("torch_fidelity.metric_kid", reason="pip install torch-fidelity")
    a, b = features(300).astype(dtype), features(300, 0.1, 0.3, 7).astype(dtype)
    options = {"kid_subsets": 1, "kid_subset_size": 300, "verbose": False}
    pair = (torch.from_numpy(x) for x in (a, b))
    right = oracle.kid_features_to_metric(*pair, **options)[oracle.KEY_METRIC_KID_MEAN]
    got, _ = metrics.kid(a, b)
    assert right > 0.1 and abs(got - right) / right < tolerance


def test_kid_is_zero_on_average_for_like_and_its_error_is_what_chance_does():
    draw = np.random.default_rng(0)
    for shift, most in ((0.5, 1.15), (0.0, 1.6)):  # without a distance it is too large by 1.4
        got = []
        for _ in range(200):
            pair = draw.normal(size=(150, 8)), draw.normal(size=(100, 8)) + shift
            got.append(metrics.kid(*pair))
        values, errors = np.array(got).T
        spread = values.std(ddof=1)
        assert 0.87 < errors.mean() / spread < most
        assert (shift > 0) == (abs(values.mean()) > 5 * spread / 200**0.5)


@pytest.mark.parametrize("mean", [0.0, 0.3, 30.0])
def test_density_and_coverage_are_those_of_prdc(mean):
    oracle = pytest.importorskip("prdc", reason="pip install prdc")
    real, drawn = features(200), features(200, 0.05, mean, 7)
    right = oracle.compute_prdc(real, drawn, nearest_k=5)
    density, coverage = metrics.density_coverage(real, drawn)
    assert abs(density - right["density"]) <= 1e-6 * right["density"]
    assert abs(coverage - right["coverage"]) <= 1e-6 * right["coverage"]
    assert (mean == 30) == (coverage == 0)


def test_diversity_worked_out_by_hand():
    images = np.zeros((5, 28, 28), np.uint8)
    images[1] = 255  # class 0: black and white
    images[2:] = 51  # class 1: three greys of 0.2, one pixel of one of them white
    images[4, 3, 3] = 255
    got = metrics.mse_diversity(images, np.array([0, 0, 1, 1, 1]))
    assert (
        got.keys() == {0, 1}
        and abs(got[0] - 1) < 1e-12
        and abs(got[1] - 2 / 3 * 0.8**2 / 784) < 1e-9
    )
    assert metrics.mse_diversity(images[2:4], np.array([7, 7])) == {7: 0}
    assert metrics.mse_diversity(images[:1], np.array([3])) == {}


def test_diversity_is_the_mean_over_pairs():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    x = pixels.reshape(6, -1) / 255
    pairs = [((x[i] - x[j]) ** 2).mean() for i in range(6) for j in range(i)]
    assert abs(metrics.mse_diversity(pixels, np.zeros(6, int))[0] - np.mean(pairs)) < 1e-12


def test_density_and_coverage_on_a_line():
    real = np.arange(10, dtype=np.float32)[:, None]
    drawn = np.float32([[4.1]] * 9 + [[100]])
    density, coverage = metrics.density_coverage(real, drawn, k=1)
    assert abs(density - 1.8) < 1e-12 and abs(coverage - 0.2) < 1e-12  # in the balls of 4 and 5
    assert metrics.density_coverage(real, real + 0.1, k=1) == (1.9, 1)  # 9 + 0.1 is in one ball


def test_the_interval_is_wilsons():
    """Checked by hand: for 95 of 100 (0.95 + 0.019207 -+ 0.046806) / 1.038415."""
    low, high = metrics.wilson(0.95, 100)
    assert abs(low - 0.88825) < 1e-4 and abs(high - 0.97846) < 1e-4
    assert metrics.wilson(1.0, 500)[1] <= 1 + 1e-12 and 0.99 < metrics.wilson(1.0, 500)[0] < 1
    assert metrics.wilson(0.0, 10)[0] >= -1e-12


def test_similarity_is_with_the_own_prompt_and_with_all_other_classes():
    texts = np.float64([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.6, 0.8]])
    images, labels = (
        np.float64([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1], [0, 0, 1]]),
        np.array([0, 1, 2, 2]),
    )
    own, wrong = metrics.similarity(images, texts, labels)
    assert abs(own - np.mean([1, 0.8, 1, 0.8])) < 1e-12
    # The mean prompts: (1, 0, 0), (0, 1, 0), (0, 0.3, 0.9).
    assert abs(wrong - np.mean([(0 + 0) / 2, (0.6 + 0.24) / 2, 0, 0])) < 1e-12
    assert np.isnan(metrics.similarity(images, texts, labels * 0)[1])


def test_the_two_nearest_are_found_among_many(monkeypatch):
    draw = np.random.default_rng(0)
    others = draw.integers(0, 256, (20_050, 28, 28), np.uint8)
    pixels = draw.integers(0, 256, (5, 28, 28), np.uint8)
    pixels[0], pixels[1] = others[20_007], others[3]
    others[9999] = others[3]  # a twin
    index, distances = metrics.nearest(pixels, others)
    difference = pixels[:, None].astype(float) - others[None, :200]
    assert index[0, 0] == 20_007 and set(index[1]) == {3, 9999} and distances[1].tolist() == [0, 0]
    assert (np.sqrt((difference**2).mean((2, 3))).min(1) / 255 >= distances[:, 0] - 1e-12).all()
    exact = np.sqrt(((pixels[4] / 255 - others / 255) ** 2).mean((1, 2)))
    assert index[4].tolist() == exact.argsort()[:2].tolist()
    assert np.abs(distances[4] - np.sort(exact)[:2]).max() < 1e-12


def test_a_copy_is_much_nearer_than_the_second():
    distances = np.float64([[0, 0], [0, 5], [1, 3.1], [1, 2.9], [2, 2]])
    assert metrics.copied(distances) == 0.6


def test_the_matrix_counts_rows_asked_for():
    matrix = metrics.confusion(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), 3)
    assert matrix.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0]]


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads, "ask", no_answer)
        choices = {"clip": "tiny", "extractor": "judge", "device": "cpu"}
        return evaluate.Evaluator(data_args(data_dir=tmp_path_factory.mktemp("data"), **choices))


def digits(n=500, split="test"):
    """n real digits as a model would leave them -> images, labels, prompts."""
    pixels, labels = images.embedded_mnist(split)
    start = len(pixels) - (n + 9) // 10 * 10
    order = torch.stack([(labels == y).nonzero()[:, 0] for y in range(10)], 1).flatten()[start:][:n]
    prompts, asked = samples.balanced_prompts(data_args(), datasets.TRAIN_TEMPLATES, n)
    assert torch.equal(labels[order], asked)
    return pixels[order].numpy(), asked.numpy(), np.array(prompts)


def measure(evaluator, pixels, labels, prompts=None, teach=True):
    if prompts is None:
        prompts = np.array(samples.balanced_prompts(data_args(), datasets.TRAIN_TEMPLATES, 500)[0])
    training = evaluator.training({"data_source": "embedded", "image_count": 5000})
    look = evaluator.look({"pixels": pixels, "labels": labels, "prompts": prompts}, training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "BATCH", 32)  # enough to tell what images teach
        row = evaluator.measure(look, evaluator.taught(pixels, labels) if teach else np.nan)
    return {name.removesuffix("_judge"): value for name, value in row.items()}, look


@pytest.fixture(scope="module")
def real(evaluator):
    """Half of the held-out digits, measured against the other half."""
    return measure(evaluator, *(array[:500] for array in evaluator.real.values()))[0]


def test_real_images_are_read_right_and_shuffled_prompts_are_far(evaluator, real):
    assert real["accuracy"] >= 0.98 and 0.95 < real["of_real"] < 1.05
    assert real["accuracy_low"] < real["accuracy"] < real["accuracy_high"]
    assert 0.9 < real["density"] < 1.2 and real["coverage"] > 0.95 and real["copied"] < 0.02
    assert real["train_on_samples"] > 0.95
    assert real["with_wrong_prompts"] < real["clip_similarity"] - 0.5
    pixels, labels, prompts = (array[:500] for array in evaluator.real.values())
    shuffled = np.random.default_rng(0).permutation(prompts)
    row, _ = measure(evaluator, pixels, labels, shuffled, teach=False)
    assert row["clip_similarity"] < real["clip_similarity"] - 0.5


def test_a_planted_collapse_shows_though_every_digit_is_right(evaluator, real):
    pixels, labels, _ = digits()
    features, one = evaluator.judge.see(pixels)[0], []
    for y in range(10):  # the most usual image of each class: a model collapses to a mode
        group = np.flatnonzero(labels == y)
        away = ((features[group] - features[group].mean(0)) ** 2).sum(1)
        one.append(group[away.argmin()])
    row, _ = measure(evaluator, pixels[one][labels], labels)
    assert row["accuracy"] == 1 and row["mse_diversity"] == 0 == row["least_of_real"]
    assert row["coverage"] < 0.4 and row["density"] > 2 * real["density"]
    assert row["fid"] > 10 * real["fid"] and row["kid"] > real["kid"] + 3 * row["kid_se"]
    assert row["train_on_samples"] < real["train_on_samples"] - 0.2
    half = np.where((labels == 3)[:, None, None], pixels[3], pixels)  # one class of ten, collapsed
    row, _ = measure(evaluator, half, labels, teach=False)
    assert row["least_of_real"] == 0 and row["least_class"] == "three" and row["of_real"] > 0.8


def test_planted_memorisation_shows_though_fid_is_near_perfect(evaluator, real):
    row, look = measure(evaluator, *digits(split="train"), teach=False)
    assert row["copied"] == 1 and row["fid"] < 3 * real["fid"] and row["of_real"] > 0.9
    assert (look["distances"][:, 0] == 0).all()
    fair, _ = measure(evaluator, *digits(), teach=False)
    assert fair["copied"] < 0.02


def test_a_planted_swap_of_two_classes_shows(evaluator, real):
    pixels, labels, _ = digits()
    swapped = labels.copy()
    swapped[labels == 3], swapped[labels == 8] = 8, 3
    row, look = measure(evaluator, pixels, swapped)
    right, _ = measure(evaluator, pixels, labels, teach=False)
    assert row["accuracy"] < right["accuracy"] - 0.15 and row["fid"] == right["fid"]
    matrix = metrics.confusion(swapped, look["read"], 10)
    assert matrix[3, 8] > 0.9 and matrix[8, 3] > 0.9 and matrix[5, 5] > 0.9
    assert row["train_on_samples"] < real["train_on_samples"] - 0.1


def test_noise_is_best_in_nothing_but_diversity_and_copied_share(evaluator, real):
    noise = np.random.default_rng(0).integers(0, 256, (500, 28, 28), np.uint8)
    row, _ = measure(evaluator, noise, digits()[1])
    for column, (_, sign, _) in compare.METRICS.items():
        worse = sign * row[column] < sign * real[column] - 1e-9
        assert worse or column in ("of_real", "copied"), column
    assert row["fid"] > 100 * real["fid"] and row["accuracy"] < 0.2


def test_the_reference_is_held_out(evaluator):
    """From what is trained on, and from the real images that calibrate."""
    pixels, labels = evaluator.held_out
    assert len(pixels) == 5000 and np.bincount(labels).tolist() == [500] * 10
    assert len({image.tobytes() for image in pixels}) == 5000
    trained = {image.tobytes() for image in images.embedded_mnist("train")[0].numpy()}
    assert len(trained) == 5000 and not trained & {image.tobytes() for image in pixels}
    assert len(evaluator.reference) == len(evaluator.real["pixels"]) == 2500
    assert {*map(bytes, pixels[:2500])}.isdisjoint(map(bytes, evaluator.real["pixels"]))
    assert np.bincount(evaluator.real["labels"]).tolist() == [250] * 10
    row, noise = evaluator.calibrate(300, None)
    assert (row["model"], noise["model"], row["n"]) == ("real images", "noise", 300)


def test_density_and_coverage_are_of_as_many_on_both_sides(evaluator):
    many = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32) + 1
    for n in (3000, 700):
        got, least = evaluator.distances(many[:n]), min(n, 2500)
        right = metrics.density_coverage(evaluator.reference[:least], many[:least])
        assert (got["density"], got["coverage"]) == right


def test_what_real_images_teach_is_taught_by_training_images(evaluator, monkeypatch):
    lessons, training = [], evaluator.training({"data_source": "embedded", "image_count": 5000})
    monkeypatch.setattr(evaluator, "taught", lambda pixels, labels: lessons.append(pixels) or 0.5)
    rows = evaluator.calibrate(600, training)
    assert [row["train_on_samples"] for row in rows] == [0.5, 0.5]
    trained = {*map(bytes, training.pixels.numpy())}
    assert len(lessons[0]) == 600 and {*map(bytes, lessons[0])} <= trained
    assert rows[0]["copied"] < 0.05 and rows[0]["n"] == 600
    # Of fewer images it is the beginning of those, and nothing is looked at again.
    alone = evaluator.look({x: array[:300] for x, array in evaluator.real.items()}, training)
    monkeypatch.setattr(evaluator, "look", None)
    beginning = evaluator.floor_looks(300, training)["real images"]
    assert all(np.array_equal(beginning[x], alone[x]) for x in ("pixels", "read", "nearest"))
    assert np.abs(beginning["features"] - alone["features"]).max() < 1e-4
    assert evaluator.calibrate(300, training)[1]["n"] == 300
    monkeypatch.setattr(evaluator, "measure", None)
    assert evaluator.calibrate(600, training) is rows, "not for every run again"


def test_a_small_reference_leaves_fid_and_its_like_empty(tmp_path, monkeypatch, capsys):
    """Fewer than 200 images: a line says so, and what does not need them is measured."""
    monkeypatch.setattr(evaluate, "REFERENCE", 190)
    choices = {"clip": "tiny", "extractor": "judge", "device": "cpu"}
    few = evaluate.Evaluator(data_args(data_dir=tmp_path, **choices))
    assert "only 190 held-out images" in capsys.readouterr().err
    row, _ = measure(few, *digits(100))
    assert all(np.isnan(row[name]) for name in evaluate.DISTANCES)
    assert row["accuracy"] > 0.95 and row["reference"] == 190


def test_like_with_like():
    """Runs that differ in data, encoder, steps or sampling stand apart, under what differs."""
    common_ones = {"data_source": "embedded", "image_count": 5000, "train_steps": 9}
    common_ones |= {"batch_size": 32, "sample_steps": 14, "eta": 1.0}
    tiny = {"clip": "auto", "text_encoder": "tiny", "text_encoder_crc32": 7}
    runs = {
        "a0_uncond": common_ones | {"text_encoder": None},
        "a1_cond": common_ones | {"text_encoder": "bag of words", "image_count": 60000},
        "a2_clip": common_ones | tiny,
        "a3_cfg": common_ones | tiny | {"text_encoder": "ViT-B/32"},
        "a4_full": common_ones | tiny,
        "a5_mine": common_ones | tiny | {"sample_steps": 50},
        "cgan": common_ones | tiny | {"train_steps": 8},
    }
    (line, alike), *others = evaluate.like_with_like(runs)
    assert alike == ["a0_uncond", "a2_clip", "a4_full"] and "embedded, 5000 images" in line
    said = {names[0]: line for line, names in others}
    assert "60000 images, not embedded, 5000" in said["a1_cond"]
    assert "text encoder: ViT-B/32" in said["a3_cfg"] and "tiny" in said["a3_cfg"]
    assert "50 steps, eta 1, not 14" in said["a5_mine"] and "8 steps of 32" in said["cgan"]
    assert all(len(names) == 1 for _, names in others)
    assert len(evaluate.like_with_like(dict.fromkeys("ab", runs["a4_full"]))) == 1


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights in torchvision's genuine format, the name holding the hash -> the file."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    net = inception_v3(weights=None, init_weights=False)
    for module in net.modules():  # BasicConv2d would shrink its input to nothing otherwise
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(net.state_dict(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(path.with_name(f"inception_v3_google-{sha256[:8]}.pth"))


def test_inception_is_fetched_and_fed_as_torchvision_wants_it(
    inception_file, server, monkeypatch, tmp_path
):
    from torchvision.models import inception_v3

    shutil.copy(inception_file, server.root)
    monkeypatch.setattr(common, "INCEPTION", server.url + inception_file.name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    pixels = digits(6)[0]
    features = common.inception_features(CPU)(pixels)
    net = inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    net.load_state_dict(torch.load(inception_file, weights_only=True))
    net.fc = torch.nn.Identity()
    x = torch.from_numpy(pixels)[:, None].float().div(255).repeat(1, 3, 1, 1)
    x = F.interpolate(x, (299, 299), mode="bilinear")
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    with torch.no_grad():
        right = net(
            (x - mean) / std
        ).numpy()  # as its documentation says: ImageNet's mean and deviation
    assert features.shape == (6, 2048) and right.std() > 1e-3
    assert np.abs(features - right).max() < 1e-3 * np.abs(right).max()

    asked = list(server.requests)
    common.inception_features(CPU)
    assert server.requests == asked  # from the cache
    cached = tmp_path / "hub" / "checkpoints" / inception_file.name
    cached.write_bytes(cached.read_bytes()[:1000])
    common.inception_features(CPU)
    fetched = cached.with_name(f"{cached.stem}-fetched.pth")
    assert fetched.stat().st_size == inception_file.stat().st_size
    assert cached.stat().st_size == 1000  # it may be a file of the user's own


def test_without_inception_auto_says_what_it_takes_and_a_name_is_strict(
    offline, monkeypatch, tmp_path, capsys, evaluator
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name, features = evaluate.pick_extractor("auto", evaluator.judge, CPU)
    assert name == "judge" and "features of the judge" in capsys.readouterr().err
    assert features(digits(4)[0]).shape == (4, 64)
    with pytest.raises(base.UserError, match="inception_v3_google"):
        evaluate.pick_extractor("inception", evaluator.judge, CPU)


# ── The two commands ──


def make_run(out, script, seed=0, blur=0.0, scales=(1.0,), **config):
    """What a finished run leaves, its samples real digits with noise of this strength."""
    folder = out / "mnist" / script
    pixels, labels, prompts = digits(200)
    drawn = [(str(w), w, samples.guidance_of(config.get("interval"), w)) for w in scales]
    if "interval" in config:
        drawn += [(f"{w}_throughout", w, "throughout") for w in scales if w > 1]
    for i, (suffix, _, _) in enumerate(drawn):
        noise = np.random.default_rng(seed).normal(0, 255 * blur * (1 + i), pixels.shape)
        noisy = (pixels + noise).clip(0, 255).astype(np.uint8)
        arrays = {"images": noisy, "labels": labels, "prompts": prompts}
        arrays |= (
            {"labels": labels * 0 - 1, "prompts": np.full(200, "")} if script == "a0_uncond" else {}
        )
        base.save_file(
            folder / "images" / f"samples_w{suffix}.npz",
            lambda file, arrays=arrays: np.savez(file, **arrays),
        )
    if script != "a0_uncond":
        arrays = {k: v[:50] for k, v in arrays.items()}
        path = folder / "images" / f"samples_heldout_w{2.0 if len(scales) > 1 else 1.0}.npz"
        base.save_file(path, lambda file: np.savez(file, **arrays))
    facts = {"script": script, "seed": seed, "sample_steps": 14, "parameters": 1234567}
    facts |= {"data_source": "embedded", "image_count": 5000, "train_steps": 40, "batch_size": 32}
    facts |= {"family": "GAN" if script == "cgan" else "diffusion"}
    facts |= {"has_guidance": len(scales) > 1, "classes": datasets.DIGITS} | config
    base.save_text(folder / "config.json", json.dumps(facts))
    speed = [
        {"parameters": 1234567, "scale": w, "guidance": where, "sample_images_per_second": 9 + i}
        for i, (_, w, where) in enumerate(drawn)
    ]
    base.save_table(folder / "metrics" / "performance.csv", speed)
    names = ("generator_loss", "discriminator_loss") if script == "cgan" else ("loss",)
    losses = [
        {"step": 20 * i} | dict.fromkeys(names, f"{1 / i + seed / 10:.4f}") for i in range(1, 40)
    ]
    base.save_table(folder / "metrics" / "loss.csv", losses)
    return folder


EVALUATE = "evaluate.py --dataset mnist --clip tiny --extractor judge"


@pytest.fixture(scope="module")
def small_reference():
    """600 held-out images are the reference, not 2,500, and as many others are measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "REFERENCE", 600)
        yield


@pytest.fixture
def no_figures(monkeypatch):
    """For what is about numbers and words: nothing is drawn into the figures' files."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: file.write(b"a figure"))


@pytest.fixture(scope="module")
def measured(typed_here, small_reference, tmp_path_factory):
    """Two models, one with two seeds and other sampling steps -> the folder, what was printed."""
    folder = tmp_path_factory.mktemp("measured")
    a4 = {"script": "a4_full", "scales": (1.0, 2.0, 10.0), "interval": [300, 700]}
    make_run(folder / "results", blur=0.02, **a4)
    make_run(folder / "results" / "seed1", seed=1, blur=0.1, **a4)
    make_run(folder / "results" / "steps50", blur=0.01, sample_steps=50, **a4)
    make_run(folder / "results", "cgan")
    return folder, typed_here(EVALUATE, folder).stdout


@pytest.fixture
def copy(measured, tmp_path):
    return shutil.copytree(measured[0], tmp_path / "copy")


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_evaluate_writes_a_row_for_every_file_and_floor(measured):
    folder, printed = measured
    metrics = folder / "results" / "mnist" / "a4_full" / "metrics"
    fid, diversity, clip = (read(metrics / f"{name}.csv") for name in evaluate.TABLES)
    for table in (fid, diversity, clip):
        keys = "model", "phrasings", "scale", "guidance", "n"
        assert [tuple(row[key] for key in keys) for row in table] == [
            ("a4_full", "trained", "1.0", "none", "200"),
            ("a4_full", "trained", "10.0", "t 300-700", "200"),
            ("a4_full", "trained", "10.0", "throughout", "200"),
            ("a4_full", "trained", "2.0", "t 300-700", "200"),
            ("a4_full", "trained", "2.0", "throughout", "200"),
            ("a4_full", "held out", "2.0", "t 300-700", "50"),
            ("real images", "trained", "", "none", "50"), ("noise", "trained", "", "none", "50"),
            ("real images", "trained", "", "none", "200"), ("noise", "trained", "", "none", "200"),
        ]  # fmt: skip
        facts = {(row["seed"], row["extractor"], row["text_encoder"]) for row in table}
        assert facts == {("0", "judge", "tiny")}
    assert "fid" not in fid[0] and float(fid[0]["fid_judge"]) < float(fid[1]["fid_judge"])
    assert float(clip[0]["accuracy"]) > 0.95 > 0.3 > float(clip[-1]["accuracy"])
    assert all(
        float(row["clip_similarity"]) > float(row["with_wrong_prompts"]) + 0.3 for row in clip[:6]
    )
    names = {line.split("|")[1].strip() for line in printed.splitlines() if "|" in line}
    assert "sampling: 50 steps, not 14 steps" in printed and "600 held-out images" in printed
    assert names >= {"real images", "noise", "mnist/cgan", "mnist/a4_full", "seed1/mnist/a4_full"}


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]


@pytest.fixture(scope="module")
def reported(measured, cli):
    """-> the folder of results/mnist, what compare.py said."""
    return measured[0] / "results" / "mnist", cli("compare.py --dataset mnist", measured[0])


def test_the_report_holds_all_of_it(reported):
    folder, done = reported
    text, page = ((folder / "compare" / f"report.{kind}").read_text() for kind in ("md", "html"))
    pictures = [folder / "compare" / link for link in re.findall(r"!\[\w+\]\(([^)]+)\)", text)]
    names = {str(path.resolve().relative_to(folder.resolve())) for path in pictures}
    study = {"cfg_scale/plots/scale.png", "cfg_scale/images/a4_full.png"}
    shown = "grid loss speed steps confusion nearest distances"
    assert names == study | {f"compare/{x}.png" for x in shown.split()}
    assert all(imread(path).std() > 0.02 for path in pictures)
    links = Page(page).links
    inside = [link for link in links if link.startswith("data:")]
    assert len(inside) == len(pictures) + 1 and all(
        link in inside or link[0] == "#" for link in links
    )
    for heads in (text, page):
        assert "FID (judge)" in heads and "real images" in heads and "noise" in heads
    for name in ("a0_uncond", "a1_cond", "a2_clip", "a3_cfg"):
        assert f"python {name}.py --dataset mnist" in done.stderr and f"python {name}.py" in text
    assert "python cgan.py" not in text and "Traceback" not in done.stderr


@pytest.mark.usefixtures("no_figures")
def test_all_numbers_are_in_two_tables_that_give_the_reports_own_again(copy, here):
    make_run(copy / "results", "cgan", git_revision="abc")
    here(EVALUATE, copy)
    here("compare.py", copy)
    folder = copy / "results" / "mnist" / "compare"
    rows = read(folder / "metrics" / "rows.csv")
    models = [row["model"] for row in rows]
    twins = [name for name in models if name == "a4_full, throughout"]
    assert models.count("a4_full") == 2 * 4 and len(twins) == 2 * 2, "two seeds"
    assert models[-2:] == ["real images", "noise"] and models.count("cgan") == 2
    for row in rows:
        told = row["model"] not in ("real images", "noise")
        assert row["image_count"] == "5000" and (row["train_steps"] == "40") == told, row
        assert (row["git_revision"] == "abc") == (row["model"] == "cgan")
    table = pd.read_csv(folder / "metrics" / "rows.csv")
    table = table.rename(columns={new: old for old, new in compare.IN_CSV.items()})
    numbers = compare.over_seeds(table)
    tables = compare.compared(numbers, ["a4_full", "cgan"], ["a4_full"], "judge")
    text = (folder / "report.md").read_text()
    assert all(table.to_markdown(index=False, disable_numparse=True) in text for table in tables)


def test_the_study_shows_every_sample_file_by_its_scale(tmp_path):
    names = "1.0 1.05 2.0 2.0_throughout 10.0 10.0_throughout".split()
    for name in [f"w{x}" for x in names] + ["heldout_w2.0"]:
        base.save_file(tmp_path / "images" / f"samples_{name}.npz", lambda file: file.write(b"x"))
    found = compare.files_by_scale(tmp_path)
    captions = "scale 1|scale 1.05|scale 2|scale 2, throughout|scale 10|scale 10, throughout"
    assert [*found] == captions.split("|")
    assert [path.name for path in found.values()] == [f"samples_w{name}.npz" for name in names]


def test_seeds_become_mean_and_deviation(reported):
    folder, _ = reported
    rows = read(folder / "cfg_scale" / "metrics" / "cfg_scale.csv")
    twin = [row for row in rows if row["model"] == "a4_full, throughout"]
    assert [row["scale"] for row in twin] == ["2.0", "10.0"], "beside guidance in the middle"
    rows = {row["scale"]: row for row in rows if row["model"] == "a4_full"}
    assert float(twin[0]["fid_mean"]) > 2 * float(rows["2.0"]["fid_mean"]), "it has more noise"
    values = [
        float(row["fid_judge"])
        for run in (folder, folder.parent / "seed1" / "mnist")
        for row in read(run / "a4_full" / "metrics" / "fid_scores.csv")
        if (row["phrasings"], row["scale"], row["guidance"]) == ("trained", "2.0", "t 300-700")
    ]
    assert [*rows] == ["1.0", "2.0", "10.0"] and rows["2.0"]["seeds"] == "2" and len(values) == 2
    assert abs(float(rows["2.0"]["fid_mean"]) - np.mean(values)) < 1e-3 * np.mean(values)
    assert abs(float(rows["2.0"]["fid_std"]) - np.std(values, ddof=1)) < 1e-3 * np.mean(values)
    text = (folder / "compare" / "report.md").read_text()
    line = next(
        line
        for line in text.splitlines()
        if line.startswith("| a4_full") and line.split()[3] == "2"
    )
    assert re.search(r"\| 200 +\| 2 +\| [\d.,]+ ± [\d.,]+", line)


@pytest.mark.usefixtures("no_figures")
def test_a_copy_of_a_run_is_no_other_seed(copy, monkeypatch):
    shutil.copytree(copy / "results" / "seed1", copy / "results" / "seed1_again")
    monkeypatch.chdir(copy)
    compare.main([])
    rows = read(copy / "results" / "mnist" / "cfg_scale" / "metrics" / "cfg_scale.csv")
    assert {row["seeds"] for row in rows} == {"2"}
    assert "seed1_again" in (copy / "results" / "mnist" / "compare" / "report.md").read_text()


def test_the_verdict_follows_the_numbers():
    def points(**columns):  # scale 1, scale 3, scale 4
        same = dict.fromkeys(("n", *compare.METRICS), (0.5, 0.5, 0.5)) | columns
        table = {(name, "mean"): values for name, values in same.items()}
        return pd.DataFrame(table | {("n", "size"): (1, 1, 1)}, index=[1.0, 3.0, 4.0])

    numbers = points(fid=(3.0, 7.0, 8.0), accuracy=(0.9, 0.99, 0.98), coverage=(0.9, 0.9, 0.5))
    text = compare.verdict("a4_full", numbers, "x")
    assert "scale 1: lowest FID (x) (3)" in text and "KID" not in text  # alike everywhere
    assert "scale 3: highest accuracy (99.0%)" in text
    assert "scale 1 and 3: highest coverage (x) (90.0%)" in text
    numbers = points(fid=(7.0, 3.0, 8.0), accuracy=(0.99, 0.9, 0.98), copied=(0.1, 0.2, 0.3))
    text = compare.verdict("a4_full", numbers, "x")
    assert "scale 3: lowest FID" in text
    assert "scale 1: lowest copied (10.0%), highest accuracy" in text


def test_the_report_opens_in_a_browser(reported, tmp_path):
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not chromium:
        pytest.skip("no Chromium here: apt-get install chromium")
    probe = """<script>onload = () => {
        const seen = i => i.complete && i.naturalWidth > 99 && i.getBoundingClientRect().width > 99
            && getComputedStyle(i).visibility;
        document.title = [...document.images].map(seen).join();
    }</script>"""
    page = tmp_path / "report.html"
    page.write_text(
        (reported[0] / "compare" / "report.html")
        .read_text()
        .replace("</style>", "</style>" + probe)
    )
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    flags += "--disable-background-networking --disable-component-update --enable-logging=stderr "
    flags += f"--user-data-dir={tmp_path}/profile"
    line = [chromium, *flags.split(), "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert re.search("<title>(.*?)</title>", done.stdout)[1] == ",".join(["visible"] * 9)
    assert "CONSOLE" not in done.stderr


BAD_FILES = {
    "wrong shape": ("images/samples_w2.0.npz", "evaluate.py", "samples_w2.0.npz"),
    "one image": ("images/samples_w2.0.npz", "evaluate.py", "N > 1"),
    "cut npz": ("images/samples_w1.0.npz", "evaluate.py", "samples_w1.0.npz"),
    "cut speed": ("metrics/performance.csv", "compare.py", "a4_full.py"),
    "damaged config": ("config.json", "compare.py", "config.json"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_damage_is_one_clear_line(copy, monkeypatch, what):
    name, script, said = BAD_FILES[what]
    path = copy / "results" / "mnist" / "a4_full" / name
    if what in ("wrong shape", "one image"):
        with np.load(path) as file:
            arrays = {**file, "images": file["images"][:, :20]}
            arrays = arrays if what == "wrong shape" else {k: v[:1] for k, v in file.items()}
        np.savez(path, **arrays)
    else:
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    before = (copy / "results" / "mnist" / "a4_full" / "metrics" / "mse_diversity.csv").read_bytes()
    monkeypatch.chdir(copy)
    monkeypatch.setattr(downloads, "ask", no_answer)
    with pytest.raises(base.UserError, match=re.escape(said)) as caught:
        if script == "evaluate.py":
            evaluate.main(EVALUATE.split()[1:] + ["a4_full"])
        compare.main([])
    assert "\n" not in str(caught.value)
    assert (
        copy / "results" / "mnist" / "a4_full" / "metrics" / "mse_diversity.csv"
    ).read_bytes() == before


@pytest.mark.usefixtures("no_figures")
def test_compare_alone_measures_what_is_new_or_has_changed_and_nothing_else(copy, here):
    mnist = copy / "results" / "mnist"
    make_run(mnist.parent, "cgan", blur=0.01)  # drawn anew after the measuring
    make_run(mnist.parent, "a5_mine", scales=(1.0, 2.0))  # never measured
    table = mnist / "a4_full" / "metrics" / "mse_diversity.csv"
    before, half = table.read_bytes(), table.read_bytes()[:200]
    table.write_bytes(half)  # damaged
    other = copy / "results" / "seed1" / "mnist" / "a4_full" / "metrics" / "fid_scores.csv"
    untouched = other.stat().st_mtime_ns
    done = here("compare.py", copy)
    new = [line.split("/")[-1] for line in done.stderr.splitlines() if line.startswith("measuring")]
    assert sorted(new) == ["a4_full", "a5_mine", "cgan"] and other.stat().st_mtime_ns == untouched
    assert table.read_bytes() == before, "as evaluate.py had written it"
    assert "using the features" not in done.stderr, "measured as the others were"
    rows = read(mnist / "a5_mine" / "metrics" / "fid_scores.csv")
    assert rows[0]["extractor"] == "judge" and float(rows[0]["fid_judge"]) < 100
    assert "measuring" not in here("compare.py", copy).stderr
    (mnist / "cgan" / "metrics" / "judged_w1.0.npz").unlink()
    assert "measuring results/mnist/cgan" in here("compare.py", copy).stderr


@pytest.mark.usefixtures("no_figures")
def test_a_named_extractor_measures_again_what_was_measured_with_another(copy, here, monkeypatch):
    def few_pixels(pixels):
        return pixels.reshape(len(pixels), -1)[:, ::98].astype(np.float32)

    fake = {"inception": ("inception_v3", few_pixels)}
    monkeypatch.setattr(evaluate, "pick_extractor", lambda name, *_: fake[name])
    here("compare.py cgan --extractor inception", copy)
    assert "FID (inception_v3)" in (copy / "results/mnist/compare/report.md").read_text()


def test_two_extractors_share_no_table(copy, here):
    for name in evaluate.TABLES:
        path = copy / "results" / "mnist" / "cgan" / "metrics" / f"{name}.csv"
        path.write_text(path.read_text().replace("judge,", "inception_v3,"))
    error = here("compare.py --dataset mnist", copy, check=2).stderr
    assert "inception_v3" in error and "judge" in error


@pytest.mark.usefixtures("no_figures")
def test_nothing_there_and_wrong_names_are_one_line(copy, here, tmp_path):
    (tmp_path / "empty" / "results" / "mnist").mkdir(parents=True)
    for command in (EVALUATE, "compare.py"):
        assert (
            "python a4_full.py --dataset mnist" in here(command, tmp_path / "empty", check=2).stderr
        )
    assert "python a2_clip.py" in here(f"{EVALUATE} a2_clip", copy, check=2).stderr
    assert "a4_full" not in here("compare.py cgan", copy).stderr
    assert "a4_full" not in (copy / "results/mnist/compare/report.md").read_text()


def test_what_the_figures_of_judged_images_show(tmp_path, monkeypatch):
    """The matrix counts what was read, the histogram is in percent, copies stand below."""
    pixels, labels, prompts = digits(100)
    read, distances = labels.copy(), np.stack([labels / 10, labels / 5], 1)
    read[labels == 3] = 8
    file = tmp_path / "run" / "images" / "samples_w2.0.npz"
    samples.save_arrays(file, {"images": pixels, "labels": labels, "prompts": prompts})
    judged = {"read": read, "distances": distances, "real_distances": distances[:40] / 2}
    samples.save_arrays(compare.judged_file(file), judged | {"nearest": 255 - pixels[:26]})
    figures, grids = [], []
    monkeypatch.setattr(compare, "save", lambda path, figure: figures.append(figure))
    monkeypatch.setattr(compare, "save_grid", lambda path, pixels, *_, **__: grids.append(pixels))
    files = {"one": file, "two": file}
    compare.save_confusion(tmp_path / "x.png", datasets.DIGITS, files)
    texts = {x.get_position(): x.get_text() for x in figures[0].axes[0].texts}
    assert texts == {(8 if i == 3 else i, i): "100" for i in range(10)}
    assert len(figures[0].axes) == 2, "no empty panel"
    compare.save_distances(tmp_path / "x.png", files)
    lines = figures[1].axes[0].patches
    assert len(lines) == 3, "real images, and two files"
    right, heights = 0.9 / 40, [patch.get_path().vertices[:, 1].copy() for patch in lines]
    for line, shown in zip((distances[:40, 0] / 2, *[distances[:, 0]] * 2), heights):
        counts = np.histogram(line, np.linspace(0, 40 * right, 41))[0] * 100 / len(line)
        assert abs(shown.max() - counts.max()) < 1e-9
    compare.save_nearest(tmp_path / "x.png", files, 10)
    assert (grids[0][:10] == pixels[:10]).all() and (grids[0][10:20] == 255 - pixels[:10]).all()


@pytest.mark.usefixtures("small_reference")
def test_a_model_asked_for_nothing_is_compared_too(here, tmp_path):
    make_run(tmp_path / "results", "a0_uncond")
    make_run(tmp_path / "results", "a1_cond")
    here(EVALUATE, tmp_path)
    here("compare.py", tmp_path)
    text = (tmp_path / "results/mnist/compare/report.md").read_text()
    _, line, _ = (line for line in text.splitlines() if line.startswith("| a0_uncond"))
    assert "nan" not in text and line.count("–") >= 4 and "cfg_scale" not in text


def test_a_second_time_nothing_is_measured_again(copy, here, monkeypatch):
    """Features are found by what the sample files hold; a damaged one is made again."""
    metrics_folder = copy / "results" / "mnist" / "a4_full" / "metrics"
    before = {path: path.read_bytes() for path in metrics_folder.glob("*.csv")}

    def never(*_, **__):
        raise AssertionError("measured again")

    for owner, name in ((judge.Judge, "see"), (judge, "train"), (metrics, "nearest")):
        monkeypatch.setattr(owner, name, never)
    for name in ("kid", "density_coverage", "similarity"):
        monkeypatch.setattr(metrics, name, never)
    monkeypatch.setattr(common, "frechet_distance", never)
    monkeypatch.setattr(tiny.Clip, "encode_image", never)
    here(EVALUATE, copy)
    assert all(path.read_bytes() == content for path, content in before.items())
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="measured again"):
        patch.setattr(metrics, "__file__", common.__file__)  # its code has changed
        here(EVALUATE, copy)
    make_run(copy / "results", "cgan", blur=0.07)  # drawn anew
    with pytest.raises(AssertionError, match="measured again"):
        here(EVALUATE, copy)
    monkeypatch.undo()
    monkeypatch.setattr(downloads, "ask", no_answer)
    make_run(copy / "results", "cgan")
    for path in (copy / "data" / "features").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    monkeypatch.chdir(copy)
    evaluate.main(EVALUATE.split()[1:])
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.usefixtures("small_reference", "no_figures")
def test_runs_that_learned_from_other_data_stand_under_a_line_that_says_so(here, tmp_path):
    """The copied share, too, is counted against a run's own training images, or left empty."""
    results = tmp_path / "results"
    make_run(results, "a1_cond", data_source="torchvision", image_count=60000)
    make_run(results, "a2_clip")
    make_run(results, "a3_cfg")
    make_run(results / "more", "a2_clip", train_steps=80)
    done = here(EVALUATE, tmp_path)
    tables = done.stdout.split("Not quite comparable with the others: ")
    assert "data: embedded, 5000 images" in tables[0] and "a1_cond" not in tables[0]
    unlike = next(table for table in tables if "a1_cond" in table)
    assert "data: torchvision, 60000 images, not embedded, 5000 images" in unlike
    assert "learned from 60000 images (torchvision), not from the 5000 here" in done.stderr
    rows = {
        name: read(results / "mnist" / name / "metrics" / "mse_diversity.csv")[0]["copied"]
        for name in ("a1_cond", "a2_clip")
    }
    assert rows["a1_cond"] == "" and float(rows["a2_clip"]) < 0.05
    here("compare.py", tmp_path)
    for kind in ("md", "html"):
        text = (results / "mnist" / "compare" / f"report.{kind}").read_text()
        first, second = text.split("Ablation")[-1].split("Not quite comparable with the others: ")
        first = first[first.index("data: embedded") :]  # after a line about each model
        assert "a2_clip" in first and "a1_cond" not in first
        assert second.startswith("data: torchvision, 60000 images, not embedded")
        assert "a1_cond" in second and "real images" in second
        assert "more/mnist/a2_clip (train_steps 80 instead of 40)" in text
