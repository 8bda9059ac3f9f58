"""The command line as a user meets it: a run and its files, a kill, prompts, bad input."""

import importlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY, contents, data_args, no_answer, rows, run_folder
from matplotlib.image import imread

import a4_full
import common
from kit import base, datasets, downloads, images, judge, samples
from kit.encoders import load_clip

LADDER = "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full"
OTHER = "--train-steps 40 --batch-size 16 --samples 30"
OTHERS = {  # script: its other flags at tiny size
    "a0_uncond": "--sample-steps 3",
    "a1_cond": "--sample-steps 3",
    "a2_clip": "--sample-steps 3 --clip tiny",
    "a3_cfg": "--sample-steps 3 --clip tiny --scales 1,2",
    "cgan": "--clip tiny",
    "cvae": "--clip tiny",
}
LOSSES = {
    "cgan": ["generator_loss", "discriminator_loss"],
    "cvae": ["reconstruction_loss", "kl_loss"],
}
SAMPLES = "samples_w1.0.npz", "samples_w2.0.npz", "samples_heldout_w2.0.npz"
SAMPLES += ("samples_w2.0_throughout.npz",)


def test_a_run_leaves_the_files_of_the_design(finished):
    run = run_folder(finished)
    config = json.loads((run / "config.json").read_text())
    assert config["dataset"] == "mnist" and config["seed"] == 0 and config["train_steps"] == 60
    assert (config["data_source"], config["image_count"], config["text_encoder"]) == (
        "embedded",
        5000,
        "tiny",
    )
    assert (
        config["packages"]["torch"] == torch.__version__.split("+")[0]
        or config["packages"]["torch"] == torch.__version__
    )
    assert config["device"] in ("cpu", "cuda:0", "mps:0") and "git_revision" in config

    checkpoint = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert (
        set(checkpoint) == {"model", "ema", "optimizer", "step", "config", "rng"}
        and checkpoint["step"] == 60
    )
    moved = sum(
        (checkpoint["ema"][name] - checkpoint["model"][name]).abs().sum()
        for name in checkpoint["model"]
    )
    assert moved > 0, "the EMA must lag behind the model"

    for name in SAMPLES:
        with np.load(run / "images" / name) as file:
            assert set(file) == {"images", "labels", "prompts"}
            assert file["images"].shape == (30, 28, 28) and file["images"].dtype == np.uint8
            assert (
                np.bincount(file["labels"]).tolist() == [3] * 10
                and file["labels"].dtype == np.int64
            )
            templates = (
                datasets.HELDOUT_TEMPLATES if "heldout" in name else datasets.TRAIN_TEMPLATES
            )["mnist"]
            for prompt, label in zip(file["prompts"], file["labels"]):
                assert str(prompt) in {
                    t.format(word)
                    for t in templates
                    for word in (str(label), datasets.DIGITS[label])
                }
    for name in (
        "images/samples.png",
        "images/denoising.png",
        "images/prompts.png",
        "plots/loss.png",
    ):
        picture = imread(run / name)
        assert min(picture.shape[:2]) > 150 and picture.std() > 0.05, name

    log = rows(run / "metrics" / "loss.csv")
    assert list(log[0]) == ["step", "loss", "images_per_second"] and [
        row["step"] for row in log
    ] == ["20", "40", "60"]
    assert float(log[-1]["loss"]) < float(log[0]["loss"])
    table = rows(run / "metrics" / "performance.csv")
    assert list(table[0]) == ["parameters", "train_seconds", "train_images_per_second", "scale",
        "guidance", "sample_images_per_second", "sample_steps", "peak_memory_mb",
        "device"]  # fmt: skip
    drawn = [(row["scale"], row["guidance"]) for row in table]
    assert drawn == [("1.0", "none"), ("2.0", "t 350-700"), ("2.0", "throughout")]
    pixels = [samples.load_samples(run / "images" / name)[0] for name in SAMPLES]
    plain, middle, _, throughout = (images[:30].astype(float) for images in pixels)
    assert 0 < np.abs(middle - plain).mean() < np.abs(throughout - plain).mean()
    assert int(table[0]["parameters"]) == sum(
        p.numel() for p in a4_full.UNet(a4_full.Config(), 64).parameters()
    )
    assert 100 < float(table[0]["peak_memory_mb"]) < 8000
    assert not [path for path in run.rglob("*") if path.name.endswith(".part")]


@pytest.fixture(scope="module")
def others(typed_here, tmp_path_factory):
    """One folder with a finished run of each of the other scripts, at tiny size."""
    folder = tmp_path_factory.mktemp("others")
    for script, flags in OTHERS.items():
        typed_here(f"{script}.py {OTHER} {flags}", folder)
    return folder


@pytest.mark.parametrize("script", OTHERS)
def test_every_script_leaves_the_files_of_the_design(others, script):
    run, guided, text = run_folder(others, script), script == "a3_cfg", script != "a0_uncond"
    expected = {
        "config.json",
        "checkpoints/last.pt",
        "images/samples_w1.0.npz",
        "images/samples.png",
    }
    expected |= {
        "images/denoising.png",
        "plots/loss.png",
        "metrics/loss.csv",
        "metrics/performance.csv",
    }
    expected |= (
        {"images/prompts.png", f"images/samples_heldout_w{1.0 + guided}.npz"} if text else set()
    )
    scales = ["1.0", "2.0"][: 1 + guided]
    expected |= {f"images/samples_attributes_w{scale}.npz" for scale in scales if text}
    expected |= (
        {f"images/{name}" for name in (SAMPLES[1], SAMPLES[3], "film.npz")} if guided else set()
    )
    expected |= {"images/reconstructions.png"} if script == "cvae" else set()
    assert {str(path.relative_to(run)) for path in contents(run)} == expected

    config = json.loads((run / "config.json").read_text())
    encoder = {"a0_uncond": None, "a1_cond": "bag of words"}.get(script, "tiny")
    assert (config["script"], config["text_encoder"], config["train_steps"]) == (
        script,
        encoder,
        40,
    )
    for path in run.glob("images/samples*.npz"):
        with np.load(path) as file:
            if "attributes" in path.name:  # 9 combinations of words, 3 images each
                assert file["images"].shape == (27, 28, 28) and file["asked"].shape == (27, 2)
                assert file["prompts"][-1] == "thick two leaning left"
                continue
            assert file["images"].shape == (30, 28, 28) and file["images"].std() > 5
            if text:
                assert np.bincount(file["labels"]).tolist() == [3] * 10 and all(
                    file["prompts"] != ""
                )
                heldout = datasets.phrasings(data_args(), datasets.HELDOUT_TEMPLATES)
                assert (str(file["prompts"][12]) in heldout[2]) == ("heldout" in path.name)
            else:
                assert (file["labels"] == -1).all() and (file["prompts"] == "").all()
    for path in run.rglob("*.png"):
        assert imread(path).std() > 0.02, path.name
    losses = LOSSES.get(script, ["loss"])
    assert (run / "images" / "reconstructions.png").exists() == (script == "cvae")
    log = rows(run / "metrics" / "loss.csv")
    assert list(log[0]) == ["step", *losses, "images_per_second"] and [
        row["step"] for row in log
    ] == ["20", "40"]
    table = rows(run / "metrics" / "performance.csv")
    assert [row["scale"] for row in table] == ["1.0", *(["2.0", "2.0"] if guided else [])]
    assert {row["sample_steps"] for row in table} == {"1" if script in LOSSES else "3"}
    assert int(table[0]["parameters"]) == config["parameters"] > 100_000


@pytest.mark.parametrize("script", OTHERS)
def test_every_script_says_when_it_is_complete(others, here, script):
    before = contents(others)
    done = here(f"{script}.py {OTHER} {OTHERS[script]}", others)
    assert "complete" in done.stderr and contents(others) == before


def test_what_another_sampler_has_drawn_is_drawn_again(others, here, tmp_path):
    copy = shutil.copytree(others, tmp_path / "copy")
    run = copy / "results" / "mnist" / "a0_uncond"
    text, samples = (run / "config.json").read_text(), run / "images" / "samples_w1.0.npz"
    assert "SDE-DPM-Solver++(2M)" in text
    (run / "config.json").write_text(text.replace('"SDE-DPM-Solver++(2M)"', '"DDIM"'))
    before = samples.read_bytes()
    samples.write_bytes(before[:100])
    done = here(f"a0_uncond.py {OTHER} {OTHERS['a0_uncond']}", copy)
    assert "complete" not in done.stderr and "training" not in done.stderr
    assert samples.read_bytes() == before and (run / "config.json").read_text() == text


@pytest.mark.parametrize("script", [script for script in OTHERS if script != "a0_uncond"])
def test_every_script_that_reads_text_draws_a_prompt(others, here, tmp_path, script):
    copy = shutil.copytree(others, tmp_path / "copy")
    flags = "" if script in LOSSES else " --sample-steps 2"
    done = here(f"{script}.py --prompt seven --n 4{flags}", copy)
    assert imread(copy / done.stdout.strip()).std() > 0.05


def test_the_ladder_shares_its_budget(others, finished):
    """Same budget, seed and data by default; the networks differ by what the rung adds."""
    defaults = [importlib.import_module(script).Config.parse([]) for script in LADDER]
    shared = "train_steps batch_size lr ema_decay widths patch seed sample_steps eta samples"
    for name in shared.split():
        assert len({getattr(config, name) for config in defaults}) == 1, name
    sizes = [
        json.loads((run_folder(others, s) / "config.json").read_text())["parameters"]
        for s in LADDER[2:4]
    ]
    sizes.append(json.loads((run_folder(finished) / "config.json").read_text())["parameters"])
    assert sizes[1] == sizes[0], "a missing text is the mean text, which is no parameter"
    assert sizes[2] - sizes[1] == sum(
        p.numel() for p in a4_full.Attention(a4_full.Config.widths[1]).parameters()
    )


REFUSED = {
    "a0_uncond": "prompt n clip scale scales p-uncond gamma beta z",
    "a1_cond": "clip scale scales p-uncond gamma beta z",
    "a2_clip": "scale scales p-uncond gamma beta z",
    "a3_cfg": "gamma beta z",
    "a4_full": "gamma beta z",
    "cgan": "scale scales sample-steps eta p-uncond beta",
    "cvae": "scale scales sample-steps eta p-uncond gamma",
}


@pytest.mark.parametrize("script", REFUSED)
def test_a_flag_that_means_nothing_is_refused_and_not_in_the_help(here, tmp_path, script):
    text = here(f"{script}.py --help", tmp_path).stdout
    flags = (
        "dataset train-steps batch-size lr seed device clip sample-steps eta samples data-dir out"
    )
    for flag in f"{flags} scales prompt n scale ema-decay p-uncond gamma beta z".split():
        refused = flag in REFUSED[script].split()
        assert (f"--{flag} " in text) != refused, flag
        if refused:
            with pytest.raises(base.UserError, match=f"--{flag} 0.5; {script}.py --help"):
                importlib.import_module(script).Config.parse([f"--{flag}", "0.5"])
    if script == "a4_full":
        return  # it has weights that come with the repository
    done = here(f"{script}.py --prompt seven --scale 3", tmp_path, check=2)
    wanted = "nothing trained" if script == "a3_cfg" else "unrecognized"
    assert (
        len(done.stderr.splitlines()) == 1
        and wanted in done.stderr
        and not list(tmp_path.iterdir())
    )


# ── Weights that come with the repository ──


def test_a_prompt_is_drawn_before_anything_is_trained(here, tmp_path):
    done = here("a4_full.py --prompt 7 --n 2 --scale 3 --sample-steps 4", tmp_path)
    weights = base.ROOT / "assets" / "a4_full_mnist.pt"
    assert f"drawn with {weights}, which comes with the repository" in done.stderr
    assert "python a4_full.py --dataset mnist trains your own" in done.stderr
    assert "CLIP" not in done.stderr, "no encoder was asked for on the net"
    picture = tmp_path / done.stdout.strip()
    assert imread(picture).std() > 0.05
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [picture]
    before = contents(tmp_path)
    small = "a4_full.py --train-steps 2 --batch-size 4 --samples 10 --sample-steps 1 --scales 1"
    trained = here(small, tmp_path)
    assert "earlier run" not in trained.stderr and before.items() <= contents(tmp_path).items()
    done = here("a4_full.py --prompt 7 --n 2 --sample-steps 4", tmp_path)
    assert "comes with" not in done.stderr and "a4_full/images" in done.stdout


def test_the_weights_that_come_with_the_repository_are_small_and_draw_digits(here, tmp_path):
    weights = base.ROOT / "assets" / "a4_full_mnist.pt"
    assert weights.stat().st_size < 2e6
    saved = torch.load(weights)
    assert saved["config"]["data_source"] == "embedded" and saved["config"]["out"] == "results"
    halves = {x.dtype for x in saved["ema"].values() if x.is_floating_point()}
    assert halves == {torch.float16}
    network = judge.load_judge(data_args(), torch.device("cpu"))
    config = a4_full.Config.parse(["--prompt", "7"])
    model = a4_full.UNet(config, 64)
    model.load_state_dict(saved["ema"])
    encoder = load_clip("tiny", data_args(), torch.device("cpu"))
    text = encoder.encode_text([f"the digit {name}" for name in datasets.DIGITS])
    v = partial(a4_full.guided_v, model=model, text=text, scale=2.0, interval=(350, 700))
    generators = samples.generators_of(0, range(10))
    x_T = samples.noise(generators, 1, 28, 28)
    x_0 = a4_full.sample(v, x_T, 18, 1.0, generators)
    read = network.see(images.to_pixels(x_0))[1]
    assert (read == np.arange(10)).sum() >= 9


OTHERWISE = {
    "another network": "--widths 16,32",
    "another encoder": "--clip ViT-B/32",
    "another folder": "--out mine",
    "another data set": "--dataset emnist",
}


@pytest.mark.parametrize("flags", OTHERWISE.values(), ids=OTHERWISE)
def test_they_are_not_used_where_flags_ask_for_something_else(here, tmp_path, flags):
    done = here(f"a4_full.py --prompt 7 --n 1 {flags}", tmp_path, check=2)
    assert "nothing trained at" in done.stderr and not [*tmp_path.iterdir()]


def test_they_are_not_used_by_a_script_whose_network_was_changed(here, tmp_path, monkeypatch):
    monkeypatch.setattr(a4_full, "Attention", lambda channels: torch.nn.Identity())
    done = here("a4_full.py --prompt 7 --n 1", tmp_path, check=2)
    assert "nothing trained at" in done.stderr and not [*tmp_path.iterdir()]


def test_scales_share_their_noise(finished):
    """The same prompts at every scale; guided and plain images of one noise are alike."""
    files = [np.load(run_folder(finished) / "images" / name) for name in SAMPLES[:2]]
    assert (files[0]["prompts"] == files[1]["prompts"]).all()
    one, two = (file["images"].reshape(30, -1).astype(float) for file in files)
    same = np.abs(one - two).mean()
    assert same < np.abs(one - np.roll(two, 1, axis=0)).mean()


def test_the_same_command_again_only_says_that_all_is_there(copy, cli):
    before = contents(copy / "results")
    done = cli(TINY, copy)
    assert "complete" in done.stderr and contents(copy / "results") == before


def test_a_lost_output_is_made_again_the_same(copy, here):
    run = run_folder(copy)
    before, checkpoint = contents(run / "images"), (run / "checkpoints/last.pt").read_bytes()
    (run / "images" / SAMPLES[1]).unlink()
    (run / "images" / "prompts.png").unlink()
    (run / "metrics" / "performance.csv").unlink()
    here(TINY, copy)
    assert len(rows(run / "metrics" / "performance.csv")) == 3
    assert (
        contents(run / "images") == before
        and (run / "checkpoints/last.pt").read_bytes() == checkpoint
    )


def test_other_sampling_flags_draw_again_and_other_scales_add_files(copy, here):
    run, drawn = run_folder(copy), (*SAMPLES, "film.npz")
    before, checkpoint = contents(run / "images"), (run / "checkpoints/last.pt").read_bytes()
    here(TINY + ",1.25", copy)
    with np.load(run / "images" / "samples_w1.25.npz") as file:
        assert file["images"].shape == (30, 28, 28)
    assert all(
        (run / "images" / name).read_bytes() == before[run / "images" / name] for name in drawn
    )
    scales = [row["scale"] for row in rows(run / "metrics/performance.csv")]
    assert scales == ["1.0", "2.0", "2.0", "1.25", "1.25"]
    extreme = {}
    for contrast in ("1.5", "1"):
        here(f"{TINY} --contrast {contrast}", copy)
        with np.load(run / "images" / SAMPLES[0]) as file:
            extreme[contrast] = np.isin(file["images"], (0, 255)).mean()
    assert extreme["1.5"] > extreme["1"] + 0.05
    here(TINY.replace("--sample-steps 3", "--sample-steps 4"), copy)
    assert all(
        (run / "images" / name).read_bytes() != before[run / "images" / name] for name in drawn
    )
    assert (run / "checkpoints/last.pt").read_bytes() == checkpoint


def test_same_seed_same_file_and_going_on_after_sigkill_changes_nothing(
    finished, tmp_path, offline_env, here
):
    """Kill a run after its first checkpoint, go on, and get what the run nobody killed has."""
    code = "import sys, common, a4_full; common.Run.SAVE_EVERY = 0; a4_full.main(sys.argv[1:])"
    flags, run, whole = TINY.split()[1:], run_folder(tmp_path), run_folder(finished)
    env = offline_env | {"PYTHONPATH": str(base.ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *flags], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
    )
    while not (run / "checkpoints" / "last.pt").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    step = torch.load(run / "checkpoints/last.pt", weights_only=True)["step"]
    assert 0 < step < 60
    assert f"from step {step}" in here(TINY, tmp_path).stderr
    for path in (whole / "images").glob("*.npz"):
        assert (run / "images" / path.name).read_bytes() == path.read_bytes()
    curves = [
        [list(r.values())[:-1] for r in rows(folder / "metrics/loss.csv")]
        for folder in (run, whole)
    ]
    assert curves[0] == curves[1]


def test_a_prompt_gives_a_picture(copy, here):
    command = [
        "a4_full.py",
        "--prompt",
        "a $handwritten$ seven!",
        "--scale",
        "3",
        "--n",
        "5",
        "--sample-steps",
        "2",
    ]
    before = contents(copy)
    done = here(command, copy)
    assert "note" not in done.stderr
    first, second = done.stdout.strip(), here(command, copy).stdout.strip()
    picture = imread(copy / first)
    assert first == second and min(picture.shape[:2]) > 100 and picture.std() > 0.05
    added = contents(copy)
    assert len(added) == len(before) + 1 and all(added[path] == before[path] for path in before)
    command[2] = "sevens"
    done = here([*command, "--seed", "1"], copy)
    assert "names nothing" in done.stderr and imread(copy / done.stdout.strip()).std() > 0.05


def test_a_prompt_to_a_model_half_trained_says_so(copy, here):
    last = run_folder(copy) / "checkpoints" / "last.pt"
    torch.save(torch.load(last, weights_only=True) | {"step": 30}, last)
    assert "step 30 of 60" in here("a4_full.py --prompt 7 --n 1 --sample-steps 1", copy).stderr


def test_a_tilde_is_the_home_folder(copy, here, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    done = here(f"a4_full.py --prompt 7 --n 1 --sample-steps 1 --out=~/{copy.name}/results", copy)
    assert done.stdout.startswith(str(copy / "results")) and not (copy / "~").exists()


def test_a_prompt_is_drawn_with_the_networks_choices_of_its_training(here, tmp_path):
    """What no flag says is taken from the run: widths here, which are others in the file."""
    here("a1_cond.py --widths 16,32 --train-steps 2 --samples 4 --sample-steps 1", tmp_path)
    drawn = here("a1_cond.py --prompt 7 --n 1 --sample-steps 1", tmp_path).stdout
    assert imread(tmp_path / drawn.strip()).std() > 0.01
    done = here("a1_cond.py --train-steps 2 --samples 4 --sample-steps 1", tmp_path, check=2)
    assert "has widths [16, 32], not [32, 64]" in done.stderr


def test_fresh_starts_over_and_keeps_the_earlier_run(copy, here):
    before = contents(run_folder(copy))
    here(TINY + " --fresh --seed 1", copy)
    assert json.loads((run_folder(copy) / "config.json").read_text())["seed"] == 1
    kept = [path for path in run_folder(copy).parent.glob(".a4_full*") if path.is_dir()]
    assert len(kept) == 1 and sorted(contents(kept[0]).values()) == sorted(before.values())


def test_evaluate_and_compare_read_the_run(copy, here):
    earlier = shutil.copytree(run_folder(copy), run_folder(copy).with_name(".a4_full_1"))
    assert "a4_full" in here("evaluate.py --clip tiny --extractor judge", copy).stdout
    page = (copy / here("compare.py --dataset mnist", copy).stdout.strip()).read_text()
    assert page.count("<img") == 10 and earlier.name not in page


BAD = {
    "unknown dataset": (["--dataset", "cifar"], "mnist"),
    "empty prompt": (["--prompt", " "], "empty"),
    "long prompt": (["--prompt", "seven " * 80], "77"),
    "negative scale": (["--prompt", "7", "--scale", "-1"], "--scale"),
    "interval turned round": (
        ["--interval", "700,400"],
        "--interval 700,400: the lower t comes first",
    ),
    "scale in words": (["--prompt", "7", "--scale", "big"], "--scale"),
    "scale nan": (["--prompt", "7", "--scale", "nan"], "--scale"),
    "a nan among the scales": (["--scales", "3,nan"], "--scales"),
    "infinite scales": (["--scales", "inf"], "--scales"),
    "lr nan": (["--lr", "nan"], "--lr"),
    "one sample": (["--samples", "1"], "--samples"),
    "three widths": (["--widths", "8,8,8"], "--widths"),
    "widths that GroupNorm refuses": (["--widths", "12,24"], "multiple of 8"),
    "a patch that does not fit": (["--patch", "4"], "--patch"),
    "scales and a prompt": (["--prompt", "7", "--scales", "3"], "--scales does not go with"),
    "samples and a prompt": (["--prompt", "7", "--samples", "9"], "--samples does not go with"),
    "other training and a prompt": (["--prompt", "7", "--train-steps", "9"], "train_steps 60"),
    "an abbreviation": (["--sample", "30"], "--sample 30"),
    "negative scales": (["--scales", "1,-2"], "--scales"),
    "no steps": (["--train-steps", "0"], "--train-steps"),
    "no images": (["--prompt", "7", "--n", "0"], "--n"),
    "scales in words": (["--scales", "1,x"], "number"),
    "a scale and no prompt": (["--scale", "3"], "--prompt"),
    "a fresh prompt": (["--prompt", "7", "--fresh"], "--fresh"),
    "not UTF-8": (["--prompt", "caf\udce9 seven"], "surrogates"),
    "unknown flag": (["--promt", "7"], "--help"),
    "cuda without cuda": (["--device", "cuda"], "--device cpu"),
    "no such device": (["--device", "banana"], "banana"),
    "unknown clip": (["--clip", "ViT-Z/9", "--fresh"], "ViT-Z/9"),
    "clip out of reach": (["--clip", "RN50", "--fresh"], "RN50"),
    "another clip for a run that is complete": (TINY.split()[1:] + ["--clip", "RN50"], "tiny, not"),
    "other training": (TINY.split()[1:] + ["--lr", "0.1"], "lr 0.005"),
    "no such output folder": (["--out", "/dev/null/x"], "/dev/null"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_exit_2_and_changes_nothing(copy, here, name):
    flags, expected = BAD[name]
    if name == "cuda without cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = contents(copy)
    done = here(["a4_full.py", *flags], copy, check=2)
    error = [line for line in done.stderr.splitlines() if not line.startswith(("CLIP:", "MNIST:"))]
    assert len(error) == 1 and error[0].startswith("error: ") and expected in error[0], done.stderr
    assert contents(copy) == before


def test_a_prompt_before_any_training(cli, tmp_path):
    done = cli(["a3_cfg.py", "--prompt", "seven"], tmp_path, check=2)
    assert "python a3_cfg.py --dataset mnist" in done.stderr and not list(tmp_path.iterdir())


FAULTS = (
    "cut early",
    "cut late",
    "empty",
    "text",
    "of another model",
    "of another network",
    "of another tiny CLIP",
)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "flags", [["--prompt", "seven"], [*TINY.split()[1:], "--eta", "0"]], ids=["prompt", "train"]
)
def test_a_bad_checkpoint(copy, here, fault, flags):
    last = run_folder(copy) / "checkpoints" / "last.pt"
    if fault.startswith("of another"):
        checkpoint = torch.load(last, weights_only=True)
        name = {"model": "script", "network": "parameters", "tiny CLIP": "text_encoder_crc32"}[
            fault[11:]
        ]
        checkpoint["config"][name] = "a2_clip" if name == "script" else 1
        torch.save(checkpoint, last)
    else:
        whole = last.read_bytes()
        cut = {
            "cut early": whole[:50_000],
            "cut late": whole[:-1000],
            "empty": b"",
            "text": b"hello\n" * 99,
        }
        last.write_bytes(cut[fault])
    before = contents(copy)
    done = here(["a4_full.py", *flags], copy, check=2)
    assert len(done.stderr.splitlines()) == 1 and "last.pt" in done.stderr
    assert contents(copy) == before


def test_a_finished_run_draws_more_without_its_data(copy, here, tmp_path):
    """Trained on embedded digits, asked for another scale where another data source is at hand."""
    last = run_folder(copy) / "checkpoints" / "last.pt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["config"]["data_source"] = "torchvision"
    torch.save(checkpoint, last)
    here(TINY + ",4", copy)
    assert (run_folder(copy) / "images" / "samples_w4.0.npz").exists()
    assert (
        json.loads((run_folder(copy) / "config.json").read_text())["data_source"] == "torchvision"
    )


def test_samples_of_a_lost_checkpoint_are_never_taken_for_the_new_model(copy, here):
    old = contents(run_folder(copy) / "images")
    shutil.rmtree(run_folder(copy) / "checkpoints")
    here(TINY + " --seed 5", copy)
    assert not set(contents(run_folder(copy) / "images").values()) & set(old.values())


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(tmp_path, here):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        done = here("a4_full.py --clip tiny --train-steps 2 --samples 2", tmp_path, check=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert done.stderr.splitlines()[-1].startswith("error: cannot write results/mnist/a4_full/")
    assert not list(tmp_path.rglob("*.pt*"))


def test_a_checkpoint_is_never_run_as_code(copy, cli):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(copy / "owned"), "w"))

    (run_folder(copy) / "checkpoints" / "last.pt").write_bytes(pickle.dumps(Evil()))
    cli(["a4_full.py", "--prompt", "seven"], copy, check=2)
    assert not (copy / "owned").exists()


def test_nan_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "ask", no_answer)
    monkeypatch.setattr(common.Run, "SAVE_EVERY", 0)
    true_loss, calls = a4_full.diffusion_loss, []

    def loss(*args):
        calls.append(1)
        return true_loss(*args) * (math.nan if len(calls) > 25 else 1)

    monkeypatch.setattr(a4_full, "diffusion_loss", loss)
    with pytest.raises(base.UserError, match="loss is nan"):
        a4_full.main(TINY.split()[1:])
    checkpoint = torch.load(run_folder(tmp_path) / "checkpoints/last.pt", weights_only=True)
    assert checkpoint["step"] == 20 and all(p.isfinite().all() for p in checkpoint["ema"].values())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")

    def write(file):
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        base.save_file(tmp_path / "file", write)
    monkeypatch.setattr(os, "fsync", lambda number: write(io.BytesIO()))
    with pytest.raises(base.UserError, match=r"cannot write .*file: No space left on device"):
        base.save_text(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_notebook_kernels_argv_is_not_ours(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/colab_kernel_launcher.py", "-f", "/x/kernel.json"])
    assert a4_full.Config.parse().dataset == "mnist"
    assert a4_full.Config.parse(["--prompt", "7", "--n", "3"]).n == 3


def test_importing_does_nothing(tmp_path, offline_env):
    code = "import a0_uncond, a1_cond, a2_clip, a3_cfg, a4_full, cgan, cvae, compare\n"
    code += "import os, kit.tiny_clip\n"
    code += "assert not os.listdir('.')"
    env = offline_env | {"PYTHONPATH": str(base.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stdout + done.stderr
