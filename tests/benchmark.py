"""How near are the scripts to this machine's limit? No test: at most 15 minutes, all in one run.

python tests/benchmark.py                             a row for each measurement
python tests/benchmark.py --peers PEERS.md            and how many times a peer's speed that is
python tests/benchmark.py --scripts a4_full           only some of the scripts

Rows are printed, and added to results/benchmark.jsonl as a line of JSON each. A script's training
and sampling are those of its own command, in a few steps; the share of the peak counts the
arithmetic of a whole step, optimiser included. Nothing else should run meanwhile. --peers takes a
Markdown table whose row of "the peer" has training images/s in its third column and samples/s in
its fourth. It needs the packages of the tests (README).
"""

import copy
import csv
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from conftest import ROOT, data_args
from test_diffusion import FakeRun
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import common
from kit import judge, samples
from kit.base import UserError, cli, pick_device, reading
from kit.flags import Flags, flag

SCRIPTS = "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full", "cgan", "cvae"
STEPS, SAMPLES = 120, 300  # of each script
WANTED, EVERY, JUDGED = 0.98, 300, 500  # share right; steps between two looks; images at each
# The script's own command, in float32 if so wished.
CODE = "import common, {0}\nif {1}: common.Run.half = lambda self: None\ncommon.cli({0}.main)"


@dataclass
class Config(Flags):
    scripts: str = flag(",".join(SCRIPTS), "which")
    peers: Path | None = flag(None, "a Markdown table with the speed of another project")
    device: str = flag("auto", "cpu, cuda, ...")
    out: Path = flag(Path("results"), "where benchmark.jsonl and the runs go")

    def check(self) -> None:
        wrong = {*self.scripts.split(",")} - {*SCRIPTS}
        if wrong:
            raise UserError(f"--scripts {sorted(wrong)[0]}: some of {','.join(SCRIPTS)}")


class Report:
    """Prints a row for each measurement, and adds it to a file."""

    def __init__(self, path: Path, peer: dict[str, float]):
        self.path, self.peer = path, peer
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, what: str, value: float, unit: str, **more) -> None:
        row = {"what": what, "value": float(f"{value:.4g}"), "unit": unit, **more}
        if what in self.peer and more.get("script") == "a4_full":
            row["times_the_peer"] = float(f"{value / self.peer[what]:.3g}")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        others = ", ".join(f"{name} {x}" for name, x in more.items() if name != "script")
        times = f", {row['times_the_peer']} times the peer" if "times_the_peer" in row else ""
        print(f"{more.get('script', ''):10} {what:24} {row['value']:>9g} {unit:10} {others}{times}")


def peer_speeds(path: Path | None) -> dict[str, float]:
    """From the row of "the peer": its training and sampling in images/s."""
    if path is None:
        return {}
    with reading(path, 'it has no table with a row of "the peer"'):
        lines = path.read_text(encoding="utf-8").splitlines()
        (row,) = [line for line in lines if line.startswith("|") and '"the peer"' in line]
        cells = [re.search(r"\d[\d.]*", cell) for cell in row.split("|")[3:5]]
        return dict(zip(("training", "sampling, guided"), (float(cell[0]) for cell in cells)))


# ── The machine ──


def processor() -> str:
    path = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", path.read_text()) if path.exists() else []
    return names[0] if names else platform.processor()


def products(n: int, device: torch.device, dtype: torch.dtype) -> list:
    """Ways to compute one product of two (n, n): PyTorch's, and as a convolution of 1 x 1.

    On a CPU another library does the second, and on some processors it is twice as fast.
    """
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    image, weight = a.view(1, n, n // 32, 32), b.view(n, n, 1, 1)
    return [lambda: a @ b, lambda: F.conv2d(image, weight)]


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of the best of some large matrix products."""
    best = 0.0
    for n in (1024, 2048):
        for product in products(n, device, dtype):
            for _ in range(4):
                start = time.perf_counter()
                product().view(-1)[0].item()  # waits for a GPU
                best = max(best, 2 * n**3 / (time.perf_counter() - start) / 1e9)
    return best


def peaks(device: torch.device) -> dict[str, float]:
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if device.type == "cuda":
        kinds["float16"] = torch.float16
    return {name: peak(device, dtype) for name, dtype in kinds.items()}


def machine(report: Report, device: torch.device) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    more = {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "processor": name}
    report.add("threads", torch.get_num_threads(), "", **more)
    for precision, speed in peaks(device).items():
        report.add("matrix product", speed, "GFLOP/s", precision=precision)


# ── The scripts ──


class Work(TorchDispatchMode):
    """Counts floating-point operations of matrix products and convolutions."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function.overloadpacket)
        self.flops += count(*args, **(kwargs or {}), out_val=result) if count else 0
        return result


def work(script) -> float:
    """GFLOP of a training step for each image, optimiser included."""
    network = next(getattr(script, x) for x in ("UNet", "Generator", "VAE") if hasattr(script, x))
    batch = script.Config.batch_size
    run = FakeRun(script, steps=1, batch_size=batch)
    text = [8] if "prompt" in script.Config.__dataclass_fields__ else []
    model, ema = (network(run.config, *text) for _ in range(2))
    with Work() as counter:
        script.train(run, model, ema)
    return counter.flops / batch / 1e9


def command(name: str, out: Path, device: str, in_float32: bool, *flags: str) -> str:
    """Run a script; -> what it printed."""
    code = CODE.format(name, in_float32)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", code, "--out", str(out), "--device", device, *flags]
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measure(report: Report, name: str, config: Config) -> None:
    """Training as the script trains here, and in float32; sampling; memory.

    The peak is measured anew before and after each: a processor's speed changes within minutes.
    """
    script = import_module(name)
    guided, each = hasattr(script.Config, "interval") and script.Config.interval, work(script)
    flags = ["--train-steps", str(STEPS), "--samples", str(SAMPLES)]
    flags += ["--clip", "tiny"] if "clip" in script.Config.__dataclass_fields__ else []
    flags += ["--scales", "1,2"] if guided else []
    for in_float32 in (True, False):
        out = config.out / "benchmark" / ("float32" if in_float32 else "default")
        shutil.rmtree(out / "mnist" / name, ignore_errors=True)
        before = peaks(pick_device(config.device))
        command(name, out, config.device, in_float32, *flags)
        after = peaks(pick_device(config.device))
        folder = out / "mnist" / name
        half = json.loads((folder / "config.json").read_text())["autocast"]
        used = half.removeprefix("torch.") if half != "None" else "float32"
        if not in_float32 and used == "float32":
            continue
        log = [float(row["images_per_second"]) for row in rows(folder / "metrics" / "loss.csv")]
        speed = statistics.median(log[1:])  # the first row warms up
        more = {"script": name, "precision": used}
        limit = max(before[used], after[used])
        share = round(speed * each / limit, 3)
        report.add("training", speed, "images/s", **more, share_of_peak=share)
        table = rows(folder / "metrics" / "performance.csv")
        report.add("peak memory", float(table[-1]["peak_memory_mb"]), "MB", **more)
        if in_float32:  # sampling is in float32 anyway
            for row in table:
                kind = {"none": "", "throughout": ", guided throughout"}
                what = f"sampling{kind.get(row['guidance'], ', guided')}"
                speed = float(row["sample_images_per_second"])
                report.add(what, speed, "images/s", script=name, steps=int(row["sample_steps"]))


def first_picture(report: Report, config: Config) -> None:
    """From the start of the command to its end: the median of three, of a run on disk."""
    out, seconds = config.out / "benchmark" / "float32", []
    for _ in range(4):
        start = time.perf_counter()
        flags = ["--prompt", "a handwritten seven", "--n", "16"]
        command("a4_full", out, config.device, True, *flags)
        seconds.append(time.perf_counter() - start)
    report.add("prompt to picture", statistics.median(seconds[1:]), "s", script="a4_full")


# ── Until the judge is content ──


class Found(Exception):
    """The judge reads enough right."""


def training_until(report: Report, config: Config) -> None:
    """a4 by its defaults: seconds of training until WANTED of its samples are right."""
    import a4_full

    device = pick_device(config.device)
    content = judge.load_judge(data_args(), device)

    class Watched(common.Run):
        def steps(self, **modules):
            began, looks = time.perf_counter(), 0.0
            for step in super().steps(**modules):
                if step and step % EVERY == 0 or step == self.config.train_steps - 1:
                    start = time.perf_counter()
                    share = right(self, modules["ema"])
                    if share >= WANTED:
                        raise Found(start - began - looks, step, share)
                    looks += time.perf_counter() - start
                yield step

    def right(run: common.Run, ema) -> float:
        """The share of samples at the default scale that the judge reads as asked."""
        choices, scale = run.config, a4_full.Config.scale
        prompts, labels = samples.balanced_prompts(choices, common.TRAIN_TEMPLATES, JUDGED)

        def draw(prompts, scale, generators):
            guidance = {"text": run.encode(prompts), "scale": scale, "interval": choices.interval}
            v = partial(a4_full.guided_v, model=ema, **guidance)
            x_T = common.noise(generators, 1, 28, 28).to(run.device)
            return a4_full.sample(v, x_T, choices.sample_steps, choices.eta, generators)

        pixels, _ = samples.draw_all(run, draw, prompts, scale, "looking")
        return float((content.see(pixels)[1] == labels.numpy()).mean())

    out = config.out / "benchmark" / "until"
    shutil.rmtree(out, ignore_errors=True)
    typed = ["--clip", "tiny", "--device", config.device, "--out", str(out)]
    choices = a4_full.Config.parse(typed)
    run = Watched(choices)
    run.encoder = common.load_clip("tiny", choices, run.device)
    torch.manual_seed(choices.seed)
    model = a4_full.UNet(choices, run.encoder.dim).to(run.device)
    more = {"script": "a4_full", "steps": choices.train_steps}
    what = f"training until {WANTED:.0%} right"
    try:
        a4_full.train(run, model, copy.deepcopy(model))
        report.add(what, float("nan"), "s", **more)
    except Found as found:
        seconds, step, share = found.args
        report.add(what, seconds, "s", **more, at_step=step, share=round(share, 3))


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    report = Report(config.out / "benchmark.jsonl", peer_speeds(config.peers))
    machine(report, pick_device(config.device))
    for name in config.scripts.split(","):
        measure(report, name, config)
    if "a4_full" in config.scripts.split(","):
        first_picture(report, config)
        training_until(report, config)


if __name__ == "__main__":
    cli(main)
