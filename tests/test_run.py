"""A run as a user meets it: what it leaves, how it resumes, two processes, prompts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import CPU, ROOT, SMALL, TINY, contents, last_of, only_error, rows, run_folder, warm
from matplotlib.image import imread

import a1_cond
import a3_cfg
import a4_full
import cgan
from kit import judge, pictures
from kit.words import DIGITS, HELDOUT_TEMPLATES, TRAIN_TEMPLATES, phrasings

FLOW = SMALL.removesuffix(" --sample-steps 2")
OTHERS = {  # script -> its flags at the smallest size
    "a0_uncond": SMALL,
    "a1_cond": f"{SMALL} --widths 16 32",
    "a2_clip": SMALL,  # without a network
    "a3_cfg": f"{SMALL} --clip tiny --scales 1 2", "a5_fast": f"{SMALL} --clip tiny",
    "cgan": f"{FLOW} --clip tiny", "cvae": f"{FLOW} --clip tiny",
}  # fmt: skip
LOSSES = {"cgan": "generator_loss discriminator_loss", "cvae": "reconstruction_loss kl_loss"}
SAMPLES, CURVE = "images/samples.npz", "metrics/loss.csv"


def table_of(folder, script="a4_full"):
    with np.load(run_folder(folder, script) / SAMPLES) as file:
        return dict(file)


def bytes_of(folder, script="a4_full"):
    return (run_folder(folder, script) / SAMPLES).read_bytes()


def test_config_checkpoint_and_tables_are_those_of_the_design(finished):
    run = run_folder(finished)
    config = json.loads((run / "config.json").read_text())
    known = {"dataset": "mnist", "seed": 0, "train_steps": 60, "script": "a4_full",
             "text_encoder": "tiny", "data_source": "embedded", "image_count": 20_000,
             "widths": [32, 64], "family": "diffusion"}  # fmt: skip
    assert known.items() <= config.items()
    names = "data_crc32 attributes device git_revision classes packages parameters processes"
    assert {*names.split()} <= {*config}
    checkpoint = torch.load(last_of(finished), weights_only=True)
    assert checkpoint["step"] == 60 and checkpoint["config"] == config
    log = rows(run / CURVE)
    assert [row["step"] for row in log] == ["20", "40", "60"] and len(checkpoint["losses"]) == 3
    assert float(log[-1]["loss"]) < float(log[0]["loss"])
    costs = rows(run / "metrics" / "performance.csv")
    assert [row["scale"] for row in costs] == ["1.0", "2.0"]
    weights = sum(x.numel() for x in a4_full.UNet(a4_full.Config(), 64).parameters())
    assert config["parameters"] == int(costs[0]["parameters"]) == weights


def test_the_samples_are_one_table_with_a_row_for_each_image(finished):
    table = table_of(finished)
    n, keys = len(table["labels"]), [*zip(table["kind"].tolist(), table["scale"].tolist())]
    assert {name: (x.shape, x.dtype.kind) for name, x in table.items()} == {
        "images": ((n, 28, 28), "u"), "labels": ((n,), "i"), "prompts": ((n,), "U"),
        "kind": ((n,), "U"), "scale": ((n,), "f"), "asked": ((n, 2), "i"), "noise": ((n,), "i"),
    }  # fmt: skip
    # 9 combinations of words: 3 images each at the default scale, else a third as many.
    sizes = {("trained", 1.0): 30, ("trained", 2.0): 30, ("held-out", 2.0): 30}
    assert Counter(keys) == sizes | {("words", 1.0): 9, ("words", 2.0): 27}
    for kind, templates in (("trained", TRAIN_TEMPLATES), ("held-out", HELDOUT_TEMPLATES)):
        known = phrasings(a4_full.Config(), templates)
        for i in (i for i, key in enumerate(keys) if key == (kind, 2.0)):
            label = table["labels"][i]
            assert label == table["noise"][i] % 10 and table["prompts"][i] in known[label]
            assert not table["asked"][i].any()
    pair = table["prompts"][(table["asked"] == (1, -1)).all(1)].tolist()
    assert len(pair) == 4 and all("thick" in x and "leaning left" in x for x in pair)
    one, two = (np.array([key == ("trained", scale) for key in keys]) for scale in (1.0, 2.0))
    for name in ("prompts", "noise"):
        assert (table[name][one] == table[name][two]).all(), "scales share prompts and noise"


@pytest.fixture(scope="module")
def others(here, tmp_path_factory):
    """One folder with a finished run of each of the other scripts, at the smallest size."""
    folder = tmp_path_factory.mktemp("others")
    for script, flags in OTHERS.items():
        said = re.findall("(?m)^(CLIP|MNIST): .*using", here(f"{script}.py {flags}", folder).stderr)
        assert said == ["CLIP"] * (script == "a2_clip") + ["MNIST"], "a line for each replacement"
    return folder


@pytest.mark.parametrize("script", [*OTHERS, "a4_full"])
def test_every_script_leaves_its_files_is_complete_and_draws(others, finished, here, script):
    folder = finished if script == "a4_full" else others
    run, text = run_folder(folder, script), script != "a0_uncond"
    guided = script in ("a3_cfg", "a4_full")
    names = "config.json checkpoints/last.pt plots/loss.png metrics/loss.csv "
    names += "metrics/performance.csv images/samples.npz images/samples.png images/denoising.png"
    names += " images/prompts.png" * text + " images/film.npz" * guided
    names += " images/reconstructions.png" * (script == "cvae")
    assert {path.relative_to(run).as_posix() for path in contents(run)} == {*names.split()}
    assert not guided or np.load(run / "images/film.npz")["frames"].shape[:3] == (6, 7, 2)
    for path in run.rglob("*.png"):
        picture = imread(path)
        assert min(picture.shape[:2]) > 90 and picture.std() > 0.02, path.name
    assert [*rows(run / CURVE)[0]][1:-1] == LOSSES.get(script, "loss").split()
    table = table_of(folder, script)
    kinds = {"trained", "held-out", "words"} if text else {"unconditional"}
    assert {*table["kind"].tolist()} == kinds
    assert text or ((table["labels"] == -1).all() and (table["prompts"] == "").all())
    before = contents(folder)
    done = here(TINY if script == "a4_full" else f"{script}.py {OTHERS[script]}", folder)
    assert f"results/mnist/{script} is complete" in done.stderr and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and contents(folder) == before
    if text:  # what no flag says is as it was trained: the widths of a1 here
        path = folder / here(f"{script}.py --prompt seven --n 4", folder).stdout.strip()
        assert imread(path).std() > 0.05
        path.unlink()


def test_importing_a_script_does_nothing(tmp_path):
    code = f"import {', '.join([*OTHERS, 'a4_full'])}, compare, evaluate, os, sys, kit.tiny_clip\n"
    code += "assert not os.listdir('.')\n"
    code += "print(*{'clip', 'torchvision'} & {*sys.modules})"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not (done.stdout + done.stderr).strip(), done.stderr


def test_after_sigkill_the_command_leaves_what_an_undisturbed_one_does(finished, tmp_path, here):
    """While it trains, a second process gets one line."""
    last = last_of(tmp_path)
    warm(tmp_path)
    often = "import sys, kit.run, a4_full; kit.run.SAVE_EVERY = 0; a4_full.main(sys.argv[1:])"
    line = [sys.executable, "-c", often, *TINY.split()[1:]]
    process = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not last.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    only_error(here(TINY, tmp_path, check=1), "another process is using", "a4_full")
    assert not (run_folder(tmp_path) / "images").exists()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    step = torch.load(last, weights_only=True)["step"]
    assert 0 < step < 60
    assert f"resuming from step {step} of 60" in here(TINY, tmp_path).stderr
    assert bytes_of(tmp_path) == bytes_of(finished)
    steps = [int(row["step"]) for row in rows(run_folder(tmp_path) / CURVE)]
    assert steps == sorted({*steps}) and steps[-1] == 60 and step in steps
    one, other = (torch.load(x, weights_only=True)["model"] for x in (last, last_of(finished)))
    assert all(torch.equal(one[name], other[name]) for name in one)


def interrupt(monkeypatch, place, name, call, number=None):
    """In this call of a function raise a signal, or exit with 9. -> a list that all calls fill"""
    true, calls = getattr(place, name), []

    def function(*args):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(number) if number else sys.exit(9)
        return true(*args)

    monkeypatch.setattr(place, name, function)
    return calls


def test_ctrl_c_finishes_the_step_and_saves(finished, here, tmp_path, monkeypatch):
    before = [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
    interrupt(monkeypatch, a4_full, "diffusion_loss", 25, signal.SIGINT)
    done = here(TINY, tmp_path, check=130)
    assert "saved at step 25 of 60" in done.stderr.splitlines()[-1]
    assert [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)] == before
    assert "resuming from step 25 of 60" in here(TINY, tmp_path).stderr
    log, whole = (rows(run_folder(x) / CURVE) for x in (tmp_path, finished))
    assert [row["step"] for row in log] == ["20", "25", "40", "60"]
    assert log[0]["loss"] == whole[0]["loss"] and log[3]["loss"] == whole[2]["loss"]
    assert bytes_of(tmp_path) == bytes_of(finished)


def test_sigterm_counts_as_ctrl_c_and_a_gan_resumes_too(others, here, tmp_path, monkeypatch):
    """Two networks, two optimisers, the moving average."""
    command = f"cgan.py {OTHERS['cgan']}"
    interrupt(monkeypatch, cgan.common, "to_images", 2, signal.SIGTERM)
    assert "saved at step 2 of 4" in here(command, tmp_path, check=143).stderr
    assert "resuming from step 2 of 4" in here(command, tmp_path).stderr
    assert bytes_of(tmp_path, "cgan") == bytes_of(others, "cgan")


def test_killed_while_it_samples_it_resumes_after_the_last_group(finished, copy, here, monkeypatch):
    run = run_folder(copy)
    shutil.rmtree(run / "images")
    monkeypatch.setattr(a4_full, "train", lambda *_: pytest.fail("it trains"))
    calls = interrupt(monkeypatch, a4_full, "sample", 4)  # in the fourth of five groups
    here(TINY, copy, check=9)
    assert not (run / SAMPLES).exists() and "complete" not in here(TINY, copy).stderr
    # Two groups, prompts.png, denoising.png, seven scales of film.npz.
    assert len(calls) == 4 + 2 + 1 + 1 + 7
    assert bytes_of(copy) == bytes_of(finished)
    assert not (run / "images" / ".samples.npz").exists()


@pytest.mark.usefixtures("coarse_figures")
def test_choices_of_sampling_generate_anew_without_training(others, here, tmp_path, monkeypatch):
    monkeypatch.setattr(a3_cfg, "train", lambda *_: pytest.fail("it trains"))
    copy = shutil.copytree(others, tmp_path / "copy", symlinks=True)
    earlier, trained = table_of(copy, "a3_cfg")["images"], last_of(copy, "a3_cfg").read_bytes()
    command = f"a3_cfg.py {OTHERS['a3_cfg']}"
    for flags in "--samples 10|--scales 2 4|--eta 0|--sample-steps 3|--interval 0 1000".split("|"):
        assert "complete" not in here(f"{command} {flags}", copy).stderr, flags
        now, name = table_of(copy, "a3_cfg"), flags.split()[0][2:].replace("-", "_")
        assert now["images"].shape != earlier.shape or (now["images"] != earlier).any(), flags
        config = json.loads((run_folder(copy, "a3_cfg") / "config.json").read_text())
        assert config[name] == a3_cfg.Config.parse(flags.split()).choices()[name]
        if flags == "--samples 10":  # fewer are the beginning of more
            few = now["images"][(now["kind"] == "trained") & (now["scale"] == 1)].astype(int)
            assert len(few) == 10 and np.abs(few - earlier[:10]).max() <= 2
        earlier = now["images"]
    assert last_of(copy, "a3_cfg").read_bytes() == trained
    here(command, copy)
    assert bytes_of(copy, "a3_cfg") == bytes_of(others, "a3_cfg")


def test_fresh_starts_over_and_moves_the_earlier_run_aside(others, here, tmp_path):
    """Samples whose checkpoint is lost never pass for those of the new model."""
    copy = shutil.copytree(others, tmp_path / "copy", symlinks=True)
    run, command = run_folder(copy, "a0_uncond"), f"a0_uncond.py {SMALL} --fresh --seed 1"
    before = contents(run)
    done = here(command, copy)
    assert json.loads((run / "config.json").read_text())["seed"] == 1
    (aside,) = (x for x in run.parent.glob(".a0_uncond_*") if x.is_dir())
    assert [*contents(aside).values()] == [*before.values()]
    assert f"the earlier run is now in {aside.relative_to(copy)}" in done.stderr
    here(command, copy)
    assert len([x for x in run.parent.glob(".a0_uncond_*") if x.is_dir()]) == 2
    old = table_of(copy, "a0_uncond")["images"]
    shutil.rmtree(run / "checkpoints")
    here(f"a0_uncond.py {SMALL} --seed 5", copy)
    assert (table_of(copy, "a0_uncond")["images"] != old).any()


STEPS = SMALL.replace("--train-steps 4", "--train-steps 40")
# Before the training: gradients of two processes with other images are averaged.
CODE = """
import argparse, os, signal, sys, torch, a1_cond, common
from kit.files import RANK, pick_device

pick_device("auto")
model = torch.nn.Linear(2, 1, bias=False)
parallel = common.Run.parallel(argparse.Namespace(replicas={}), model)
parallel(torch.tensor([[1.0, 2.0 + 4 * RANK]])).sum().backward()
assert model.weight.grad.tolist() == [[1.0, 4.0]], model.weight.grad

true_loss, calls = a1_cond.diffusion_loss, []
def loss(model, x_0, alphas_bar):
    calls.append(1)
    assert len(x_0) == 4, "each process takes half of a batch"
    if len(calls) == 5 and RANK == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return true_loss(model, x_0, alphas_bar)
a1_cond.diffusion_loss = loss
try:
    a1_cond.main(sys.argv[1:])
except SystemExit as stop:
    print(f"ended with {stop.code}")
torch.distributed.barrier()
a1_cond.main(sys.argv[1:])
"""


def test_two_processes_stop_resume_and_generate_what_one_does(here, tmp_path, monkeypatch):
    """One of them is asked to stop at step 5."""
    run = run_folder(tmp_path, "a1_cond")
    warm(tmp_path)
    (tmp_path / "both.py").write_text(CODE)
    line = "-m torch.distributed.run --standalone --nproc-per-node 2 both.py".split()
    done = subprocess.run([sys.executable, *line, *STEPS.split()], cwd=tmp_path, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert done.returncode == 0, done.stdout
    said = "saved at step 20 of 40", "from step 20 of 40", "ended with 143"
    assert [done.stdout.count(x) for x in said] == [1, 1, 2], done.stdout
    assert [row["step"] for row in rows(run / CURVE)] == ["20", "40"]
    checkpoint = torch.load(last_of(tmp_path, "a1_cond"), weights_only=True)
    assert checkpoint["config"]["processes"] == 2
    assert not [x for x in checkpoint["model"] if x.startswith("module.")]
    by_two = bytes_of(tmp_path, "a1_cond")
    shutil.rmtree(run / "images")
    monkeypatch.setattr(a1_cond, "train", lambda *_: pytest.fail("it trains"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here(f"a1_cond.py {STEPS}", tmp_path)
    torch.set_num_threads(threads)
    assert bytes_of(tmp_path, "a1_cond") == by_two


DRAW = "a4_full.py --n 2 --sample-steps 2 --prompt"


def test_the_weights_of_the_repository_draw_what_is_asked_for(here, tmp_path, monkeypatch):
    """A prompt before any training."""
    done = here(f"{DRAW} 7", tmp_path)
    assert f"using {ROOT / 'assets' / 'a4_full_mnist.pt'}" in done.stderr
    assert "CLIP" not in done.stderr, "no encoder was asked for on the net"
    picture = tmp_path / done.stdout.strip()
    assert imread(picture).std() > 0.05 and [*contents(tmp_path)] == [picture]
    network = judge.load_judge(a4_full.Config(), CPU)
    monkeypatch.setattr(pictures, "save_grid", grid := Mock())
    for i, script in ((0, "a4_full"), (3, "a4_full"), (7, "a4_full"), (3, "a5_fast")):
        here(f"{script}.py --n 5 --prompt {DIGITS[i]}", tmp_path)
        _, pixels, columns, title = grid.call_args.args
        assert pixels.shape == (5, 28, 28) and columns == 3 and (network.see(pixels)[1] == i).all()
        assert title == DIGITS[i] + "; guidance scale 2" * (script == "a4_full")
    assert "names no class" in here(f"{DRAW} sevens", tmp_path).stderr


@pytest.mark.parametrize("flags", ["a4_full.py --widths 16 32", "a4_full.py --train-steps 9",
    "a4_full.py --lr 1 --clip ViT-B/32", "a4_full.py --out mine", "a4_full.py --dataset emnist",
    "a3_cfg.py"])  # fmt: skip
def test_they_are_not_used_for_what_they_were_not_trained_with(here, tmp_path, flags):
    line = only_error(here(f"{flags} --prompt 7", tmp_path, check=1))
    assert re.search(r"no trained model .*python a\d_\w+.py --dataset|was trained with", line)
    assert not contents(tmp_path)


def test_a_trained_run_draws_prompts_and_adds_a_picture_alone(copy, here):
    before, names = contents(copy), set()
    for flags in "7|7 --n 3|7 --seed 1|7 --scale 3|7 --eta 0|$hand$7!|7".split("|"):
        done = here(f"{DRAW} {flags}", copy)
        path = copy / done.stdout.strip()
        names.add(path)
        assert path.parent == run_folder(copy) / "images" and imread(path).std() > 0.05
        assert not done.stderr and path.name.isascii() and "$" not in path.name
    assert len(names) == 6, "other choices, other names; the same again, the same name"
    after = contents(copy)
    assert after.keys() - before.keys() == names
    assert all(after[path] == before[path] for path in before)
    checkpoint = torch.load(last_of(copy), weights_only=True)
    torch.save(checkpoint | {"step": 30}, last_of(copy))
    assert "30 of 60" in here(f"{DRAW} 7", copy).stderr, "it is trained in part"


def test_the_variables_of_torchrun_without_torchrun_mean_nothing(cli, tmp_path):
    env = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29517"}
    cli(f"a0_uncond.py {SMALL}", tmp_path, env=env)
    assert torch.load(last_of(tmp_path, "a0_uncond"), weights_only=True)["step"] == 4
    assert (tmp_path / cli(f"{DRAW} seven", tmp_path, env=env).stdout.strip()).is_file()
