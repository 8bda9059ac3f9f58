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
from conftest import CPU, data_args
from matplotlib.image import imread

import common
import compare
import evaluate
from kit import base, datasets, images, metrics, samples
from kit.encoders import load_clip


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
def test_fid_is_that_of_pytorch_fid(monkeypatch, n):
    fid_score = pytest.importorskip("pytorch_fid.fid_score", reason="pip install pytorch-fid")
    sqrtm = fid_score.linalg.sqrtm
    monkeypatch.setattr(
        fid_score.linalg, "sqrtm", lambda x, disp=True: (sqrtm(x), 0)
    )  # SciPy 1.18 has no disp
    draw, mix = np.random.default_rng(1), np.random.default_rng(2).normal(size=(64, 64))
    a, b = draw.normal(size=(3000, 64)) @ mix, draw.normal(size=(n, 64)) @ (mix + 0.1) + 0.3
    moments = [x for features in (a, b) for x in (features.mean(0), np.cov(features, rowvar=False))]
    right = fid_score.calculate_frechet_distance(*moments)
    assert abs(common.frechet_distance(a, b) - right) / right < 1e-6


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


def test_precision_and_coverage_on_a_line():
    real = np.arange(10, dtype=np.float32)[:, None]
    near, far = metrics.precision_coverage(real, np.float32([[4.1], [100]]), k=1)
    assert near == 0.5 and abs(far - 0.2) < 1e-6  # within 1 of 4.1: the real 4 and 5
    assert metrics.precision_coverage(real, real + 0.1, k=1) == (1, 1)


def test_wrong_prompts_are_of_other_classes():
    prompts, labels = samples.balanced_prompts(data_args(), datasets.TRAIN_TEMPLATES, 95)
    wrong = metrics.wrong_prompts(labels.numpy(), np.array(prompts))
    texts = datasets.phrasings(data_args(), datasets.TRAIN_TEMPLATES)
    assert (
        all(wrong[i] not in texts[y] for i, y in enumerate(labels.tolist()))
        and len(set(wrong)) > 50
    )


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "reachable", lambda url: False)
        choices = {"clip": "tiny", "extractor": "tiny", "device": "cpu"}
        return evaluate.Judge(data_args(data_dir=tmp_path_factory.mktemp("no_data"), **choices))


def digits(n=500):
    """n unseen real digits as a model would leave them -> images, labels, prompts."""
    pixels, labels = images.embedded_mnist("test")
    order = torch.stack([(labels == y).nonzero()[:, 0] for y in range(10)], 1).flatten()[:n]
    prompts, asked = samples.balanced_prompts(data_args(), datasets.TRAIN_TEMPLATES, n)
    assert torch.equal(labels[order], asked)
    return pixels[order].numpy(), asked.numpy(), np.array(prompts)


def test_real_images_are_read_right_and_shuffled_prompts_are_far(judge):
    pixels, labels, prompts = digits()
    row = judge.measure(pixels, labels, prompts)
    assert (
        row["accuracy"] >= 0.98 and 0.9 < row["of_real"] < 1.1 and row["precision_tiny_clip"] > 0.85
    )
    assert row["with_wrong_prompts"] < row["clip_similarity"] - 0.5
    shuffled = judge.measure(pixels, labels, np.random.default_rng(0).permutation(prompts))
    assert shuffled["clip_similarity"] < row["clip_similarity"] - 0.5


def test_a_collapse_shows_though_every_digit_is_right(judge):
    pixels, labels, prompts = digits()
    read = (evaluate.embed(judge.tiny, pixels) @ judge.classes.T).argmax(1)
    repeated = pixels[[np.flatnonzero((labels == y) & (read == y))[0] for y in range(10)]][labels]
    real, collapsed = (
        judge.measure(pixels, labels, prompts),
        judge.measure(repeated, labels, prompts),
    )
    assert (
        collapsed["accuracy"] == 1 and collapsed["mse_diversity"] == 0 == collapsed["least_of_real"]
    )
    assert collapsed["coverage_tiny_clip"] < 0.1 < 0.5 < real["coverage_tiny_clip"]
    assert collapsed["fid_tiny_clip"] > 10 * real["fid_tiny_clip"]
    half = np.where((labels == 3)[:, None, None], pixels[3], pixels)  # one class of ten, collapsed
    row = judge.measure(half, labels, prompts)
    assert row["least_of_real"] == 0 and row["least_class"] == "three" and row["of_real"] > 0.8


def test_the_reference_holds_none_of_the_calibrating_images(judge):
    assert len(judge.reference) == len(judge.real) == 2250
    real, noise = judge.calibrate(300)
    assert (real["model"], noise["model"], real["n"]) == ("real images", "noise", 300)
    assert noise["fid_tiny_clip"] > 100 * real["fid_tiny_clip"] and noise["accuracy"] < 0.2
    features = judge.features(judge.real)
    nearest = (
        torch.cdist(torch.from_numpy(judge.reference), torch.from_numpy(features)).min(1).values
    )
    assert (nearest > 1e-3).float().mean() > 0.99


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
    assert cached.stat().st_size == inception_file.stat().st_size  # fetched again


def test_without_inception_auto_says_what_it_takes_and_a_name_is_strict(
    offline, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    tiny = load_clip("tiny", data_args(), CPU)
    name, features = evaluate.pick_extractor("auto", tiny)
    assert name == "tiny_clip" and "tiny CLIP" in capsys.readouterr().err
    seen = features(digits(4)[0])
    assert seen.shape == (4, 64) and np.abs((seen**2).sum(1) - 1000).max() < 0.01
    with pytest.raises(base.UserError, match="inception_v3_google"):
        evaluate.pick_extractor("inception", tiny)


# ── The two commands ──


def make_run(out, script, seed=0, blur=0.0, scales=(1.0,), **config):
    """What a finished run leaves, its samples real digits with noise of this strength."""
    folder = out / "mnist" / script
    pixels, labels, prompts = digits(200)
    for i, w in enumerate(scales):
        noise = np.random.default_rng(seed).normal(0, 255 * blur * (1 + i), pixels.shape)
        noisy = (pixels + noise).clip(0, 255).astype(np.uint8)
        arrays = {"images": noisy, "labels": labels, "prompts": prompts}
        arrays |= (
            {"labels": labels * 0 - 1, "prompts": np.full(200, "")} if script == "a0_uncond" else {}
        )
        base.save_file(
            folder / "images" / f"samples_w{w}.npz",
            lambda file, arrays=arrays: np.savez(file, **arrays),
        )
    if script != "a0_uncond":
        arrays = {k: v[:50] for k, v in arrays.items()}
        path = folder / "images" / f"samples_heldout_w{2.0 if len(scales) > 1 else 1.0}.npz"
        base.save_file(path, lambda file: np.savez(file, **arrays))
    facts = {"script": script, "seed": seed, "sample_steps": 14, "parameters": 1234567}
    facts |= {"family": "GAN" if script == "cgan" else "diffusion"}
    facts |= {"has_guidance": len(scales) > 1, "classes": datasets.DIGITS} | config
    base.save_text(folder / "config.json", json.dumps(facts))
    speed = [
        {"parameters": 1234567, "scale": w, "sample_images_per_second": 100 / (1 + i)}
        for i, w in enumerate(scales)
    ]
    base.save_table(folder / "metrics" / "performance.csv", speed)
    names = ("generator_loss", "discriminator_loss") if script == "cgan" else ("loss",)
    losses = [
        {"step": 20 * i} | dict.fromkeys(names, f"{1 / i + seed / 10:.4f}") for i in range(1, 40)
    ]
    base.save_table(folder / "metrics" / "loss.csv", losses)
    return folder


EVALUATE = "evaluate.py --dataset mnist --clip tiny --extractor tiny"


@pytest.fixture(scope="module")
def measured(cli, tmp_path_factory):
    """Two models, one with two seeds and other sampling steps -> the folder, what was printed."""
    folder = tmp_path_factory.mktemp("measured")
    make_run(folder / "results", "a4_full", blur=0.02, scales=(1.0, 2.0, 10.0))
    make_run(folder / "results" / "seed1", "a4_full", seed=1, blur=0.1, scales=(1.0, 2.0, 10.0))
    make_run(
        folder / "results" / "steps50",
        "a4_full",
        blur=0.01,
        scales=(1.0, 2.0, 10.0),
        sample_steps=50,
    )
    make_run(folder / "results", "cgan")
    return folder, cli(EVALUATE, folder).stdout


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
        assert [(r["model"], r["phrasings"], r["scale"], r["n"]) for r in table] == [
            ("a4_full", "trained", "1.0", "200"), ("a4_full", "trained", "10.0", "200"),
            ("a4_full", "trained", "2.0", "200"), ("a4_full", "held out", "2.0", "50"),
            ("real images", "trained", "", "50"), ("noise", "trained", "", "50"),
            ("real images", "trained", "", "200"), ("noise", "trained", "", "200"),
        ]  # fmt: skip
        facts = {(row["seed"], row["extractor"], row["text_encoder"]) for row in table}
        assert facts == {("0", "tiny_clip", "tiny")}
    assert "fid" not in fid[0] and float(fid[0]["fid_tiny_clip"]) < float(fid[1]["fid_tiny_clip"])
    assert float(clip[0]["accuracy"]) > 0.95 > 0.3 > float(clip[-1]["accuracy"])
    assert all(
        float(row["clip_similarity"]) > float(row["with_wrong_prompts"]) + 0.3 for row in clip[:4]
    )
    names = {line.split("|")[1].strip() for line in printed.splitlines()[:-1]}
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
    assert names == study | {f"compare/{x}.png" for x in ("grid", "loss", "speed", "steps")}
    assert all(imread(path).std() > 0.02 for path in pictures)
    links = Page(page).links
    assert len(links) == len(pictures) + 1 and all(link.startswith("data:") for link in links)
    for heads in (text, page):
        assert "FID (tiny_clip)" in heads and "real images" in heads and "noise" in heads
    for name in ("a0_uncond", "a1_cond", "a2_clip", "a3_cfg"):
        assert f"python {name}.py --dataset mnist" in done.stderr and f"python {name}.py" in text
    assert "python cgan.py" not in text and "Traceback" not in done.stderr


def test_seeds_become_mean_and_deviation(reported):
    folder, _ = reported
    rows = {row["scale"]: row for row in read(folder / "cfg_scale" / "metrics" / "cfg_scale.csv")}
    values = [
        float(row["fid_tiny_clip"])
        for run in (folder, folder.parent / "seed1" / "mnist")
        for row in read(run / "a4_full" / "metrics" / "fid_scores.csv")
        if (row["model"], row["phrasings"], row["scale"]) == ("a4_full", "trained", "2.0")
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


def test_a_copy_of_a_run_is_no_other_seed(copy, monkeypatch):
    shutil.copytree(copy / "results" / "seed1", copy / "results" / "seed1_again")
    monkeypatch.chdir(copy)
    compare.main([])
    rows = read(copy / "results" / "mnist" / "cfg_scale" / "metrics" / "cfg_scale.csv")
    assert {row["seeds"] for row in rows} == {"2"}
    assert "seed1_again" in (copy / "results" / "mnist" / "compare" / "report.md").read_text()


def test_the_verdict_follows_the_numbers():
    def points(**columns):  # scale 1, scale 3
        same = dict.fromkeys(("n", *compare.METRICS), (0.5, 0.5)) | columns
        table = {(name, "mean"): pair for name, pair in same.items()} | {("n", "size"): (1, 1)}
        return pd.DataFrame(table, index=[1.0, 3.0])

    text = compare.verdict("a4_full", points(fid=(3.0, 7.0), accuracy=(0.9, 0.99)), "FID (x)")
    assert "scale 1 is best in FID (x) (3)" in text
    assert "scale 3 is best in accuracy (99.0%)" in text
    assert re.search("scale 1 and 3 is best in coverage .*, precision", text)
    text = compare.verdict("a4_full", points(fid=(7.0, 3.0), accuracy=(0.99, 0.9)), "FID (x)")
    assert "scale 3 is best in FID" in text and "scale 1 is best in accuracy" in text


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
    assert re.search("<title>(.*?)</title>", done.stdout)[1] == ",".join(["visible"] * 6)
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
    monkeypatch.setattr(images, "reachable", lambda url: False)
    with pytest.raises(base.UserError, match=re.escape(said)) as caught:
        if script == "evaluate.py":
            evaluate.main(EVALUATE.split()[1:] + ["a4_full"])
        compare.main([])
    assert "\n" not in str(caught.value)
    assert (
        copy / "results" / "mnist" / "a4_full" / "metrics" / "mse_diversity.csv"
    ).read_bytes() == before


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
    assert "using the features" not in done.stderr, "measured as the others were, by tiny CLIP"
    rows = read(mnist / "a5_mine" / "metrics" / "fid_scores.csv")
    assert rows[0]["extractor"] == "tiny_clip" and float(rows[0]["fid_tiny_clip"]) < 100
    assert "measuring" not in here("compare.py", copy).stderr


def test_a_named_extractor_measures_again_what_was_measured_with_another(copy, here, monkeypatch):
    def few_pixels(pixels):
        return pixels.reshape(len(pixels), -1)[:, ::98].astype(np.float32)

    fake = {"inception": ("inception_v3", few_pixels)}
    monkeypatch.setattr(evaluate, "pick_extractor", lambda name, tiny: fake[name])
    here("compare.py cgan --extractor inception", copy)
    assert "FID (inception_v3)" in (copy / "results/mnist/compare/report.md").read_text()


def test_two_extractors_share_no_table(copy, here):
    for name in evaluate.TABLES:
        path = copy / "results" / "mnist" / "cgan" / "metrics" / f"{name}.csv"
        path.write_text(path.read_text().replace("tiny_clip", "inception_v3"))
    error = here("compare.py --dataset mnist", copy, check=2).stderr
    assert "inception_v3" in error and "tiny_clip" in error


def test_nothing_there_and_wrong_names_are_one_line(copy, here, tmp_path):
    (tmp_path / "empty" / "results" / "mnist").mkdir(parents=True)
    for command in (EVALUATE, "compare.py"):
        assert (
            "python a4_full.py --dataset mnist" in here(command, tmp_path / "empty", check=2).stderr
        )
    assert "python a2_clip.py" in here(f"{EVALUATE} a2_clip", copy, check=2).stderr
    assert "a4_full" not in here("compare.py cgan", copy).stderr
    assert "a4_full" not in (copy / "results/mnist/compare/report.md").read_text()


def test_a_model_asked_for_nothing_is_compared_too(here, tmp_path):
    make_run(tmp_path / "results", "a0_uncond")
    make_run(tmp_path / "results", "a1_cond")
    here(EVALUATE, tmp_path)
    here("compare.py", tmp_path)
    text = (tmp_path / "results/mnist/compare/report.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| a0_uncond"))
    assert "nan" not in text and line.count("–") >= 4 and "cfg_scale" not in text
