"""Trials that take minutes. No test: run those whose code has changed. A broken promise fails.

python tests/long.py golden        all scripts: weights and samples are the same
python tests/long.py kills         SIGKILL at 20 random moments, while it trains and samples
python tests/long.py flags         150 made-up command lines, each really started
python tests/long.py damage        150 times a file of a run is damaged somewhere
python tests/long.py processes     two processes of one thread each against one: images/s of a4
python tests/long.py clip          a text encoder of the size of ViT-B/32: seconds, memory
python tests/long.py minimal       minimal.py: seconds, and which of 200 images the judge is sure of
python tests/long.py page          demo.py in Chromium: pip install gradio playwright; screenshots
"""

import importlib
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from conftest import CPU, DEAD, ROOT, STAND_IN, TINY, rows, run_folder, save_openai_clip
from test_config import SCRIPTS, VALUES
from test_golden import differences, train

import demo
from kit import judge

ENV = os.environ | DEAD | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SAMPLES = "images/samples.npz"


def start(place: Path, flags, launch=("-c", "import a4_full; a4_full.main()")):
    line = [sys.executable, *launch, *(flags if isinstance(flags, list) else flags.split())]
    return subprocess.Popen(line, cwd=place, env=ENV, stdout=-3, stderr=-1, text=True)


def worked(process: subprocess.Popen) -> bool:
    """Whether a command gave a result; else it was one line, which is an error."""
    told = process.communicate()[1]
    refused = process.returncode in (1, 2) and told.splitlines()[-1].startswith("error: ")
    assert (process.returncode == 0 or refused) and "Traceback" not in told, told
    return not refused


def golden(place: Path) -> None:
    train(place, SCRIPTS, 20)
    different = {script: differences(place, script, 20) for script in SCRIPTS}
    assert not any(different.values()), different
    print(f"{len(SCRIPTS)} scripts: the same weights and samples as in golden.json")


def kills(place: Path) -> None:
    """Training saves every second here. What is left is compared with an undisturbed run."""
    often = "-c", "import a4_full, kit.run; kit.run.SAVE_EVERY = 1; a4_full.main()"
    flags = " ".join(TINY.split()[1:]).replace("steps 60", "steps 400").replace("s 30", "s 200")
    dice, begin, killed = random.Random(0), time.time(), 0
    for name in "ab":
        (place / name).mkdir()
    assert worked(start(place / "a", flags, often))
    seconds = time.time() - begin
    while killed < 20:
        process = start(place / "b", flags, often)
        try:
            process.wait(dice.uniform(3, 3 + seconds / 3))
            assert worked(process)
            shutil.rmtree(place / "b" / "results")  # complete: again from the start
        except subprocess.TimeoutExpired:
            process.kill()
            killed += bool(process.wait())
    assert worked(start(place / "b", flags, often))
    whole, other = (run_folder(place / name) for name in "ab")
    steps = [int(row["step"]) for row in rows(other / "metrics" / "loss.csv")]
    assert steps == sorted({*steps}) and {*range(20, 401, 20)} <= {*steps}, steps
    assert (whole / SAMPLES).read_bytes() == (other / SAMPLES).read_bytes()
    print(f"{killed} kills: samples and curve as if there had been none")


def flags(place: Path) -> None:
    dice, good = random.Random(1), 0
    small = {"train_steps": "1", "batch_size": "4", "samples": "4", "sample_steps": "1",
             "clip": "tiny"}  # fmt: skip
    for _ in range(150):
        script = dice.choice(SCRIPTS)
        fields = [*importlib.import_module(script).Config.__dataclass_fields__]
        chosen = {name: value for name, value in small.items() if name in fields}
        chosen |= {dice.choice(fields): dice.choice(VALUES).replace("\0", "")}
        line = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
        good += worked(start(place, line, [str(ROOT / f"{script}.py")]))
    print(f"150 command lines: {good} gave a result, the others one line")


def damage(place: Path) -> None:
    """The end of a file is cut off, or some bytes in it are others."""
    dice, refused, run = random.Random(2), 0, run_folder(place)
    command = " ".join(TINY.split()[1:])
    assert worked(start(place, command))
    shutil.copytree(run, place / "whole")
    for i in range(150):
        shutil.rmtree(run)
        shutil.copytree(place / "whole", run)
        (run / SAMPLES).unlink()
        path = run / dice.choice(["config.json", "checkpoints/last.pt"])
        content, at = bytearray(path.read_bytes()), dice.randrange(path.stat().st_size)
        content[at : None if i % 2 else at + 8] = dice.randbytes(8)
        path.write_bytes(content)
        refused += not worked(start(place, command))
    print(f"150 damaged files: {refused} refused in one line, the others harmless")


def processes(place: Path) -> None:
    speeds, flags = [], "--train-steps 300 --clip tiny --samples 1 --scales 1 --fresh"
    for count in ("1", "2"):
        launch = "-m torch.distributed.run --standalone --nproc-per-node".split()
        assert worked(start(place, flags, [*launch, count, str(ROOT / "a4_full.py")]))
        log = rows(run_folder(place) / "metrics" / "loss.csv")
        speeds.append(statistics.median(float(row["images_per_second"]) for row in log[1:]))
    print(f"{speeds[0]:.0f} images/s by one process, {speeds[1]:.0f} by two")
    assert speeds[1] > 1.3 * speeds[0]


def clip(place: Path) -> None:
    save_openai_clip(place, STAND_IN)
    begin = time.time()
    assert worked(start(place, "--clip jit.pt --train-steps 2 --samples 10 --scales 1"))
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    print(f"all captions read, 2 steps, 10 samples: {time.time() - begin:.0f} s, {memory:.0f} MB")


def minimal(place: Path) -> None:
    (place / "assets").symlink_to(ROOT / "assets")
    os.chdir(place)
    code, reader = (ROOT / "minimal.py").read_text(), judge.load_judge(judge.Config(), CPU)
    code, shares = code.replace("randn(6,", "randn(200,").replace("6 * 2 * 24", "-1"), []
    for seed in range(5):
        torch.manual_seed(seed)
        begin, names = time.time(), {}
        exec(code, names)
        took, images = time.time() - begin, F.pad(names["x_t"].clamp(-1, 1), [2] * 4, value=-1)
        shares.append((reader(images).softmax(1).amax(1) > 0.9).float().mean().item())
        print(f"seed {seed}: {took:.0f} s, clear (above 0.9): {shares[-1]:.1%} of 200 images")
        assert len(images) == 200 and took <= 180
    assert min(shares) >= 0.75


def page(place: Path) -> None:
    """Two tabs at once, five clicks in each; how long images take, beside the command line."""
    from playwright.sync_api import sync_playwright

    os.chdir(place)
    begin = time.time()
    assert worked(start(place, ["--prompt", "a thin two"], [str(ROOT / "a4_full.py")]))
    alone, times = time.time() - begin, []
    process = subprocess.Popen([sys.executable, ROOT / "demo.py"], env=ENV, stdout=-1, text=True)
    address = next(word for line in process.stdout for word in line.split() if "http" in word)
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"))
        style = {"color_scheme": "dark", "locale": "zh-CN", "viewport": {"width": 390, "height": 9}}
        tabs = {"a thin two": browser.new_page(), "5": browser.new_page(**style)}
        for word, tab in tabs.items():
            tab.goto(address)
            tab.locator("textarea, input[type=text]").nth(1).fill(word)
        for _ in range(5):
            begin = time.time()
            for tab in tabs.values():
                tab.locator("button.primary").click()
            for word, tab in tabs.items():
                tab.wait_for_selector("figure img")
                times.append(time.time() - begin)
                tab.wait_for_function("document.body.innerText.split('thickness').length == 33")
                tab.screenshot(path=ROOT / "results" / f"page_{word}.png", full_page=True)
                sentences = "a thick seven leaning left", word
                *_, page = demo.play("results/mnist/a4_full", *sentences, 2, 0, 16, 0)
                assert tab.locator("figure img").last.get_attribute("src") in page
        firsts = ", then ".join(f"{seconds:.1f}" for seconds in times[:2])
        print(f"first x_t after {firsts} s; a click in both {time.time() - begin:.1f}, {alone:.1f}")
    process.kill()


if __name__ == "__main__":
    for name in sys.argv[1:] or "golden kills flags damage processes clip minimal page".split():
        with tempfile.TemporaryDirectory() as folder:
            globals()[name](Path(folder))
