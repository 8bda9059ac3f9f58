"""torchrun: two processes train one model, stop together, resume; devices; half precision."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import SMALL, last_of, rows, run_folder, warm

import a1_cond
import common

FLAGS = "--train-steps 40 --batch-size 8 --samples 20 --sample-steps 2"
# Before the training: gradients of two processes with other images are averaged.
CODE = """
import os, signal, sys, torch, a1_cond, common
from kit.files import RANK

class Run(common.Run):
    def load_data(self):
        model = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.ones_(model.weight)
        self.parallel(model)(torch.tensor([[1.0, 2.0 + 4 * RANK]])).sum().backward()
        assert model.weight.grad.tolist() == [[1.0, 4.0]], model.weight.grad
        return super().load_data()

common.Run, true_loss, calls = Run, a1_cond.diffusion_loss, []
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
assert torch.load("results/mnist/a1_cond/checkpoints/last.pt")["step"] == 20
a1_cond.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes, of which one was asked to stop at step 5; then resumed. -> folder"""
    place = tmp_path_factory.mktemp("two")
    warm(place)
    (place / "both.py").write_text(CODE)
    line = "-m torch.distributed.run --standalone --nproc-per-node 2 both.py".split()
    done = subprocess.run([sys.executable, *line, *FLAGS.split()], cwd=place, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert done.returncode == 0, done.stdout
    said = "saved at step 20 of 40", "from step 20 of 40", "ended with 143"
    assert [done.stdout.count(x) for x in said] == [1, 1, 2], done.stdout
    return place


def test_two_processes_resume_without_a_gap_and_leave_all_files(two):
    run, checkpoint = run_folder(two, "a1_cond"), torch.load(last_of(two, "a1_cond"))
    assert [row["step"] for row in rows(run / "metrics" / "loss.csv")] == ["20", "40"]
    assert checkpoint["config"]["processes"] == 2
    assert not [x for x in checkpoint["model"] if x.startswith("module.")]
    assert {"samples.npz", "prompts.png"} <= {path.name for path in (run / "images").iterdir()}


def test_what_they_generate_is_what_one_process_generates(two, here, tmp_path, monkeypatch):
    last = last_of(tmp_path, "a1_cond")
    last.parent.mkdir(parents=True)
    last.write_bytes(last_of(two, "a1_cond").read_bytes())
    monkeypatch.setattr(a1_cond, "train", lambda *_: pytest.fail("it trains"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here(f"a1_cond.py {FLAGS}", tmp_path)
    torch.set_num_threads(threads)
    paths = [run_folder(x, "a1_cond") / "images" / "samples.npz" for x in (tmp_path, two)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_bfloat16_learns_as_float32_does(here, tmp_path, monkeypatch):
    losses = []
    for fast in (False, True):
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=fast)
        monkeypatch.setattr(common.Run, "autocast", lambda self, autocast=autocast: autocast)
        here(f"a1_cond.py {SMALL} --samples 1 --train-steps 6 --out {fast}", tmp_path)
        log = tmp_path / str(fast) / "mnist" / "a1_cond" / "metrics" / "loss.csv"
        losses.append(float(rows(log)[0]["loss"]))
    assert losses[0] != losses[1] and abs(losses[1] / losses[0] - 1) < 0.03
