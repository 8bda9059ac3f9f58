"""torchrun: two processes train as one does, die together, go on in another number; devices."""

import argparse
import contextlib
import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, no_answer

import a4_full
import common
from kit import base, downloads, processes, run

FLAGS = "--clip tiny --train-steps 60 --batch-size 16 --samples 130 --sample-steps 2 --scales 1"


@pytest.fixture(scope="module")
def torchrun(offline_env, warm):
    """torchrun(count, code or script, flags, folder) -> the process, its output in a pipe.

    code: SAVE_EVERY is 0 there, so that each row of loss.csv has its checkpoint.
    """

    def start(count, script, flags, folder):
        code = f"import sys, common, {script}\ncommon.Run.SAVE_EVERY = 0\n"
        code += f"common.cli(lambda: {script}.main(sys.argv[1:]))\n"
        warm(folder)
        file = folder / f"{script}_often.py"
        file.write_text(code)
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
        return subprocess.Popen(
            [*launch, "--standalone", str(file), *flags.split()],
            cwd=folder,
            env=offline_env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def folder_of(place, script="a4_full"):
    return place / "results" / "mnist" / script


def losses(place, script="a4_full"):
    with (folder_of(place, script) / "metrics" / "loss.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def two(torchrun, tmp_path_factory):
    """A run that two processes made, killed once after its first checkpoint. -> folder, outputs."""
    place, outputs = tmp_path_factory.mktemp("two"), []
    process = torchrun(2, "a4_full", FLAGS, place)
    last = folder_of(place) / "checkpoints" / "last.pt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    outputs.append(process.communicate(timeout=120)[0])
    assert process.returncode != 0
    step = torch.load(last, weights_only=True)["step"]
    assert 0 < step < 60
    process = torchrun(2, "a4_full", FLAGS, place)
    outputs.append(process.communicate(timeout=120)[0])
    assert process.returncode == 0, outputs[-1]
    assert f"going on from step {step} of 60" in outputs[-1]
    return place, outputs


def test_a_process_that_is_killed_ends_all_with_a_clear_line(two):
    ours = [line for line in two[1][0].splitlines() if line.startswith("error: process")]
    assert ours and all("the same command goes on from the last checkpoint" in x for x in ours)


def test_only_one_process_speaks(two):
    assert two[1][1].count("MNIST: ") == 1
    assert two[1][1].count("training: 100%") == 1


def test_going_on_leaves_no_gap_and_no_repeat_and_all_files_are_there(two):
    assert [row["step"] for row in losses(two[0])] == ["20", "40", "60"]
    checkpoint = torch.load(folder_of(two[0]) / "checkpoints/last.pt", weights_only=True)
    states = [state["cpu"] for state in checkpoint["rng"]]
    assert len(states) == 2 and not torch.equal(*states), "each draws noise of its own"
    assert checkpoint["config"]["processes"] == 2
    assert not [x for x in checkpoint["model"] if x.startswith("module.")]
    names = {path.name for path in (folder_of(two[0]) / "images").iterdir()}
    assert {"samples_w1.0.npz", "samples_heldout_w2.0.npz", "prompts.png"} <= names


def test_two_processes_interrupted_or_not_come_to_the_same(two, torchrun, tmp_path):
    process = torchrun(2, "a4_full", FLAGS, tmp_path)
    assert process.wait(120) == 0, process.communicate()[0]
    curves = [[row["loss"] for row in losses(place)] for place in (two[0], tmp_path)]
    assert curves[0] == curves[1]
    for path in (folder_of(tmp_path) / "images").glob("*.npz"):
        assert path.read_bytes() == (folder_of(two[0]) / "images" / path.name).read_bytes()


def test_samples_that_two_have_shared_are_those_of_one(two, cli, tmp_path):
    """Drawn again from the same checkpoint by one process alone."""
    place = tmp_path / "results" / "mnist" / "a4_full"
    (place / "checkpoints").mkdir(parents=True)
    last = "checkpoints/last.pt"
    (place / last).write_bytes((folder_of(two[0]) / last).read_bytes())
    cli(f"a4_full.py {FLAGS}", tmp_path, env={"OMP_NUM_THREADS": "1"})
    for path in place.glob("images/samples*.npz"):
        with np.load(path) as one, np.load(folder_of(two[0]) / "images" / path.name) as shared:
            n = 90 if "attributes" in path.name else 130  # 9 combinations of words, 10 of each
            assert len(one["images"]) == n and (one["prompts"] == shared["prompts"]).all()
            assert (one["images"] == shared["images"]).all(), path.name


def test_one_process_learns_as_fast_and_goes_on_with_what_two_began(two, here, tmp_path):
    here(f"a4_full.py {FLAGS} --samples 2 --out alone", tmp_path)
    with (tmp_path / "alone" / "mnist" / "a4_full" / "metrics" / "loss.csv").open() as file:
        alone = np.array([float(row["loss"]) for row in csv.DictReader(file)])
    shared = np.array([float(row["loss"]) for row in losses(two[0])])
    assert np.abs(shared / alone - 1).max() < 0.15, "seeds differ by as much"

    last = folder_of(two[0]) / "checkpoints" / "last.pt"
    checkpoint = torch.load(last, weights_only=True) | {"step": 40}
    mine = folder_of(tmp_path) / "checkpoints" / "last.pt"
    mine.parent.mkdir(parents=True)
    torch.save(checkpoint, mine)
    done = here(f"a4_full.py {FLAGS}", tmp_path)
    assert "going on from step 40 of 60" in done.stderr
    assert [row["step"] for row in losses(tmp_path)] == ["60"]


def test_a_gan_by_two_processes(torchrun, tmp_path):
    """Two networks, gradients of gradients; and a process that finds nothing left to draw."""
    process = torchrun(
        2, "cgan", "--train-steps 20 --batch-size 8 --samples 4 --clip tiny", tmp_path
    )
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert [row["step"] for row in losses(tmp_path, "cgan")] == ["20"]


def test_bad_input_to_several_is_said_once(torchrun, tmp_path):
    process = torchrun(2, "a4_full", f"{FLAGS} --batch-size 15", tmp_path)
    output = process.communicate(timeout=120)[0]
    wrong = "error: --batch-size 15 cannot be shared equally by 2 processes; for example 14"
    assert process.returncode != 0 and output.count(wrong) == 1, output
    assert f'File "{ROOT}' not in output and not (tmp_path / "results").exists()


STUCK = """
import ctypes, signal
from kit import processes
signal.signal(signal.SIGTERM, processes.stopped)
processes.end_when_stuck()
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
print("stuck", flush=True)
libc.pthread_mutex_lock(mutex)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="how to be stuck in C is Linux's")
def test_a_process_that_waits_for_its_gpu_is_ended_all_the_same(offline_env):
    """In a C function that no signal interrupts, as cudaStreamSynchronize, no handler runs."""
    env = offline_env | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", STUCK], env=env, text=True, **pipes)
    assert process.stdout.readline() == "stuck\n"
    time.sleep(1)  # until it is in the C function
    process.terminate()
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 143 and "the same command goes on" in errors


# ── One process ──


def test_without_torchrun_nothing_is_joined_or_wrapped():
    model = torch.nn.Linear(2, 2)
    assert processes.COUNT == 1 and processes.parallel(model) is model
    assert processes.share_of(63) == 63 and processes.device_name("cuda:1") == "cuda:1"
    assert processes.mean([1.0, 2.0]) == [1.0, 2.0] and processes.gather("x") == ["x"]


def test_several_gpus_one_each(monkeypatch):
    monkeypatch.setattr(processes, "COUNT", 4)
    monkeypatch.setattr(processes, "LOCAL_RANK", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processes.device_name("auto") == processes.device_name("cuda") == "cuda:3"
    assert processes.device_name("cpu") == "cpu"
    with pytest.raises(base.UserError, match="cuda:1 is one device for 4"):
        processes.device_name("cuda:1")
    with pytest.raises(base.UserError, match="mps cannot train by several processes"):
        processes.device_name("mps")


@pytest.mark.parametrize(("capability", "half"), [((7, 5), "float16"), ((9, 0), "bfloat16")])
def test_a_gpu_trains_in_the_half_precision_that_it_is_made_for(monkeypatch, capability, half):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    of_run = argparse.Namespace(device=torch.device("cuda:0"))
    assert str(run.Run.half(of_run)) == f"torch.{half}"


class FakeGenerator:
    """As much of torch.cuda or torch.mps as random states need: it knows which device was meant."""

    def __init__(self):
        self.state = {}

    def get_rng_state(self, *device):
        return self.state.get(device, torch.zeros(2, dtype=torch.uint8))

    def set_rng_state(self, state, *device):
        self.state[device] = state


@pytest.mark.parametrize(("name", "device"), [("cuda", "cuda:1"), ("mps", "mps:0")])
def test_the_random_state_of_the_device_in_use_is_kept(monkeypatch, name, device):
    fake, device = FakeGenerator(), torch.device(device)
    monkeypatch.setattr(torch, name, fake)
    key = () if name == "mps" else (device,)
    fake.state[key] = torch.tensor([7, 7], dtype=torch.uint8)
    states = run.random_states(device)
    assert set(states) == {"cpu", name} and states[name].tolist() == [7, 7]
    fake.state.clear()
    torch.rand(1)
    run.set_random_states(device, states)
    assert fake.state[key].tolist() == [7, 7]
    assert torch.equal(torch.get_rng_state(), states["cpu"])


def test_a_run_that_goes_on_elsewhere_repeats_no_noise(here, tmp_path, monkeypatch):
    """Begun on the CPU, gone on with on a device of which the checkpoint has no random state."""
    seeds = []
    true_seed = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or true_seed(seed))
    flags = "a0_uncond.py --batch-size 4 --samples 2 --sample-steps 1 --train-steps"
    monkeypatch.setattr(common.Run, "SAVE_EVERY", 0)
    here(f"{flags} 20", tmp_path)
    assert seeds == [0], "by one process from the start: as main() has seeded it"
    last = folder_of(tmp_path, "a0_uncond") / "checkpoints" / "last.pt"
    checkpoint = torch.load(last, weights_only=True) | {"rng": []}
    checkpoint["config"]["train_steps"] = 40
    torch.save(checkpoint, last)
    here(f"{flags} 40", tmp_path)
    assert len(seeds) == 3 and seeds[1] == 0 and seeds[2] not in (0, 1)


def test_a_checkpoint_of_an_earlier_version_goes_on_with_its_random_state(monkeypatch):
    known, device = torch.get_rng_state(), torch.device("cpu")
    old = {"rng": {"random": known, "cuda": torch.zeros(16, dtype=torch.uint8)}}
    of_run = argparse.Namespace(step=20, device=device, checkpoint=old, last="last.pt")
    of_run.config = argparse.Namespace(seed=0)
    torch.rand(5)
    run.Run.restore_rng(of_run)
    assert torch.equal(torch.get_rng_state(), known)


def test_processes_with_other_data_or_texts_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "from_first", lambda make: "torchvision")
    processes.check_alike("data source", "torchvision")
    with pytest.raises(base.UserError, match="has data source embedded, the first one torchvision"):
        processes.check_alike("data source", "embedded")


# ── Half precision ──


def a_run(monkeypatch, tmp_path, flags="", half=None):
    """A Run of a4 on a few embedded digits, in the given half precision."""
    monkeypatch.chdir(tmp_path)
    if half is not None:
        monkeypatch.setattr(common.Run, "half", lambda self: half)
    config = a4_full.Config.parse(f"--clip tiny --batch-size 8 --data-dir x {flags}".split())
    made = common.Run(config)
    made.encoder = common.load_clip("tiny", config, made.device)
    torch.manual_seed(0)
    return made, a4_full.UNet(config, made.encoder.dim)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_learns_as_float32_does(monkeypatch, tmp_path, offline, half):
    """Float16 with its scaler, which goes into the checkpoint; bfloat16 needs none."""
    rows = {}
    for dtype in (None, half):
        if dtype is None:
            monkeypatch.setattr(
                common.Run, "autocast", lambda self: contextlib.nullcontext(), raising=True
            )
        place = tmp_path / str(dtype)
        place.mkdir()
        flags = f"--train-steps 15 --out {place}"
        made, model = a_run(monkeypatch, tmp_path, flags, dtype)
        assert made.scaler.is_enabled() == (dtype is torch.float16)
        a4_full.train(made, model, a4_full.UNet(made.config, 64))
        checkpoint = torch.load(made.last, weights_only=True)
        assert ("scaler" in checkpoint) == (dtype is torch.float16)
        with (made.metrics / "loss.csv").open() as file:
            rows[dtype] = [float(row["loss"]) for row in csv.DictReader(file)]
        monkeypatch.undo()
        monkeypatch.setattr(downloads, "ask", no_answer)
    assert np.abs(np.array(rows[half]) / rows[None] - 1).max() < 0.03
