"""Trials that take minutes. No test: run the ones whose code has changed.

python tests/long.py golden        all seven scripts: weights and samples, bit for bit
python tests/long.py kills         SIGKILL at 20 random moments, while it trains and samples
python tests/long.py flags         150 made-up command lines, each really started
python tests/long.py damage        150 times a file of a run is damaged somewhere
python tests/long.py processes     two processes of one thread each against one: images/s of a4
python tests/long.py clip          a text encoder of the size of ViT-B/32: seconds, memory

Each prints what it measured, and fails where a promise is broken.
"""

import contextlib
import csv
import importlib
import io
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from conftest import DEAD, ROOT, STAND_IN, TINY, save_openai_clip
from test_config import SCRIPTS, VALUES
from test_golden import GOLDEN, differences, train

from kit.files import UserError

ENV = os.environ | DEAD | {"PYTHONPATH": str(ROOT)}
RUN, SAMPLES = Path("results/mnist/a4_full"), "images/samples.npz"


def start(place: Path, flags: str, code="import a4_full, sys; a4_full.main()", launch="-c"):
    line = [sys.executable, *launch.split(), code, *flags.split()]
    return subprocess.Popen(line, cwd=place, env=ENV, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    error = process.communicate()[1]
    assert process.returncode in (0, 1) and "Traceback" not in error, error
    assert (process.returncode == 1) == error.splitlines()[-1].startswith("error: "), error
    return error


def golden(place: Path) -> None:
    train(place, [*SCRIPTS], brief=False)
    different = {script: differences(place, script) for script in SCRIPTS}
    assert not any(different.values()), different
    print(f"as on the day of golden.json: {', '.join(GOLDEN['scripts'])}")


def kills(place: Path) -> None:
    """Training saves every second here. What is left is compared with an undisturbed run."""
    code = "import a4_full, kit.run; kit.run.SAVE_EVERY = 1; a4_full.main()"
    flags = " ".join(TINY.split()[1:]).replace("60", "400").replace("30", "200")
    dice, begin, kills, whole, killed = random.Random(0), time.time(), 0, place / "a", place / "b"
    for folder in (whole, killed):
        folder.mkdir()
    finish(start(whole, flags, code))
    seconds = time.time() - begin
    while kills < 20:
        process = start(killed, flags, code)
        try:
            process.wait(dice.uniform(3, seconds))
            finish(process)
            shutil.rmtree(killed / "results")  # complete: again from the start
        except subprocess.TimeoutExpired:
            process.kill()
            kills += bool(process.wait())
    finish(start(killed, flags, code))
    logs = [(x / RUN / "metrics" / "loss.csv").open() for x in (whole, killed)]
    steps = [[int(row["step"]) for row in csv.DictReader(log)] for log in logs]
    assert steps[1] == sorted({*steps[1]}) and {*range(20, 401, 20)} <= {*steps[1]}, steps
    assert (whole / RUN / SAMPLES).read_bytes() == (killed / RUN / SAMPLES).read_bytes()
    print(f"{kills} kills: samples and curve as if there had been none")


def attempt(module, line: list[str]) -> bool:
    """Whether a command line works; if not, it must be one line."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            module.main(line)
        return True
    except UserError as error:
        assert "\n" not in str(error), line
        return False
    except SystemExit as stop:
        assert not stop.code, line
        return True


def flags(place: Path) -> None:
    dice, worked = random.Random(1), 0
    small = "--train-steps 1 --batch-size 4 --samples 4 --clip tiny --sample-steps 1".split()
    os.environ |= DEAD
    os.chdir(place)
    for _ in range(150):
        module = importlib.import_module(dice.choice(SCRIPTS))
        fields = module.Config.__dataclass_fields__
        pairs = [*zip(small[::2], small[1::2])]
        line = [x for flag, value in pairs if flag[2:].replace("-", "_") in fields
                for x in (flag, value)]  # fmt: skip
        name = dice.choice([x for x in fields if f"--{x.replace('_', '-')}" not in small])
        worked += attempt(module, [*line, f"--{name.replace('_', '-')}", dice.choice(VALUES)])
    print(f"150 command lines: {worked} worked, the others were refused in one line")


def damage(place: Path) -> None:
    """A file is cut, or some bytes of it are others: a result, or one line that names a file."""
    dice, refused = random.Random(2), 0
    os.environ |= DEAD
    os.chdir(place)
    module, line = importlib.import_module("a4_full"), TINY.split()[1:]
    assert attempt(module, line)
    shutil.copytree(RUN, "whole")
    for i in range(150):
        shutil.rmtree(RUN)
        shutil.copytree("whole", RUN)
        path = dice.choice([RUN / "config.json", RUN / "checkpoints" / "last.pt"])
        content, at = bytearray(path.read_bytes()), dice.randrange(path.stat().st_size)
        content[at : None if i % 2 else at + 8] = dice.randbytes(i % 2 or 8)
        path.write_bytes(content)
        (RUN / SAMPLES).unlink()
        refused += not attempt(module, line)
    print(f"150 damaged files: {refused} refused in one line, the others harmless")


def processes(place: Path) -> None:
    found, steps = [], "--train-steps 300 --clip tiny --samples 1 --scales 1 --fresh"
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node"
    ENV["OMP_NUM_THREADS"] = "1"
    for count in (1, 2):
        finish(start(place, steps, str(ROOT / "a4_full.py"), f"{torchrun} {count}"))
        with (place / RUN / "metrics" / "loss.csv").open() as log:
            speeds = [float(row["images_per_second"]) for row in csv.DictReader(log)]
        found.append(statistics.median(speeds[1:]))
    print(f"{found[0]:.0f} images/s by one process, {found[1]:.0f} by two")
    assert found[1] > 1.3 * found[0]


def clip(place: Path) -> None:
    save_openai_clip(place, STAND_IN)
    begin = time.time()
    finish(start(place, "--clip jit.pt --train-steps 2 --samples 10 --scales 1"))
    with (
        np.load(place / RUN / SAMPLES) as table,
        (place / RUN / "metrics" / "performance.csv").open() as costs,
    ):
        memory = next(csv.DictReader(costs))["peak_memory_mb"]
        print(f"{len(table['images'])} images, {time.time() - begin:.0f} s, {memory} MB")


TRIALS = {"golden": golden, "kills": kills, "flags": flags, "damage": damage,
          "processes": processes, "clip": clip}  # fmt: skip

if __name__ == "__main__":
    for name in sys.argv[1:] or TRIALS:
        with tempfile.TemporaryDirectory() as folder:
            TRIALS[name](Path(folder))
        os.chdir(ROOT)
