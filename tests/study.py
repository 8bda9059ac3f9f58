"""The study behind docs/5-results.md: every script with five seeds, variants with three.

Commands  python tests/study.py                   all that is missing; takes hours, can be stopped
          python tests/study.py --publish         its tables and pictures, into docs/ and assets/
Writes    after each run its rows into docs/results/; runs are kept in results/study/
Resumes   A run is not repeated if its rows are there for the same settings and code.
"""

import ast
import contextlib
import datetime
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import pandas as pd
import torch
import tyro
from conftest import ROOT
from variants import VARIANTS

import compare
import evaluate
from kit import judge, tiny_clip
from kit.clip import tiny_path
from kit.data import load_dataset
from kit.files import UserError, lock, save_table, say

PLACE, DATA = ROOT / "results" / "study", ROOT / "data"
RESULTS = ROOT / "docs" / "results"
LADDER = "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full"
ALL = *LADDER, "a5_fast", "cgan", "cvae"
NOISY = "a1_cond", "a1_noisy", "a2_clip", "a2_noisy", "a2_static", "a2_static_noisy"
WITNESSES = "fid fd_pixels fd_style coverage of_real nearer_training accuracy".split()
# These decide a row: what is learned, generated and measured. Files, bars and messages may change.
DECIDES = "attributes captions words muon samples metrics judge".split()
DECIDES = "common", *(f"kit/{x}" for x in DECIDES)


@dataclass
class Study:
    scripts: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    flags: str = "--dataset mnist"
    embedded: bool = True  # train on the embedded digits, even where MNIST is on disk
    of: str = ""  # the study whose trained runs are copied and sampled again
    choices: bool = False  # measured by real digits that are for choices alone, into trials.csv


AGAIN, FIVE = "--dataset mnist --scales", (0, 1, 2, 3, 4)
THREE = "--dataset quickdraw --classes cat rainbow train --per-class 1000"
STUDIES = {
    "mnist": Study(ALL, FIVE),
    "throughout": Study(("a4_full",), flags=f"{AGAIN} 2 3 --interval 0 1000", of="mnist"),
    "eps": Study(("a0_eps",)),
    "x_0": Study(("a0_x0",)),
    "eta0": Study(("a4_full",), flags=f"{AGAIN} 1 --eta 0", of="mnist"),
    "steps6": Study(("a4_full",), flags=f"{AGAIN} 1 --sample-steps 6", of="mnist"),
    "steps50": Study(("a4_full",), flags=f"{AGAIN} 1 --sample-steps 50", of="mnist"),
    "call1": Study(("a5_fast",), FIVE, "--dataset mnist --sample-steps 1", of="mnist"),
    "new_noise": Study(("a5_fast",), FIVE, "--dataset mnist --eta 1", of="mnist"),
    "calls4": Study(("a5_fast",), FIVE, "--dataset mnist --sample-steps 4 --eta 0.4", of="mnist"),
    "mnist_60000": Study(("a4_full",), embedded=False),
    "passes": Study(("a4_full",), flags="--dataset mnist --train-steps 13800", embedded=False),
    "quickdraw": Study(("a4_full",), flags=THREE, embedded=False),
    "ladder_trials": Study(("a4_full", "a4_image"), FIVE, choices=True),
    "ladder_a3": Study(("a3_cfg",), FIVE, f"{AGAIN} 1 2", of="mnist", choices=True),
    "record_a1": Study(("a4_full",), FIVE, f"{AGAIN} 2 --train-steps 3000"),
    "record_a2": Study(("a4_full",), FIVE, f"{AGAIN} 2 --train-steps 2400 --sample-steps 13"),
    "record_b1": Study(("a4_full",), FIVE, f"{AGAIN} 3 --train-steps 3400"),
    "half": Study(NOISY, flags="--dataset mnist --train-steps 2300", choices=True),
    "no_text": Study(("a4_null", "a4_no_pair"), flags=f"{AGAIN} 0 1 2 3", choices=True),
}


@dataclass
class Config:
    """Train and measure what is missing."""

    studies: tyro.conf.Positional[tuple[Literal[tuple(STUDIES)], ...]] = ()  # none: all of them
    scripts: tuple[str, ...] = ()  # only these
    seeds: tuple[int, ...] = ()  # only these
    publish: bool = False  # write the tables and pictures of what is measured, and run nothing
    commit: bool = False  # commit the rows of each run, so that the next one is of a clean tree


@dataclass
class Task:
    name: str
    script: str
    seed: int

    def __post_init__(self):
        self.study = STUDIES[self.name]
        self.dataset = self.study.flags.split()[1]
        self.out = PLACE / self.name / f"seed{self.seed}"
        self.folder = self.out / self.dataset / self.script
        self.noted = self.folder.with_suffix(".key")
        self.data = ["--data-dir", str(DATA / "study" if self.study.embedded else DATA)]
        self.flags = [*self.study.flags.split(), *self.data]
        self.title = f"{self.name}, {self.script}, seed {self.seed}"

    def file(self) -> Path:
        """The script: one of ours, or one of VARIANTS."""
        if self.script not in VARIANTS:
            return ROOT / f"{self.script}.py"
        script, changes = VARIANTS[self.script]
        path = PLACE / f"{self.script}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(changes, str):  # a patch
            line = ["patch", "-s", "-o", path, ROOT / f"{script}.py", ROOT / "tests" / changes]
            subprocess.run(line, check=True)
            return path
        text = (ROOT / f"{script}.py").read_text(encoding="utf-8")
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
        return path

    def config(self):
        """The choices of the run, without its place and seed."""
        spec = importlib.util.spec_from_file_location(self.script, self.file())
        module = sys.modules[self.script] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.Config.parse(self.flags)

    def key(self) -> str:
        """Changes with the settings, code and text encoder that decide the samples."""
        config = self.config()
        if not tiny_path(config).exists():
            tiny_clip.main(self.flags)
        free = compare.FREE - {"scales"}
        choices = {name: x for name, x in config.choices().items() if name not in free}
        choices["tiny_clip"] = zlib.crc32(tiny_path(config).read_bytes())
        code = "".join(code_of(x) for x in (self.file(), *(ROOT / f"{x}.py" for x in DECIDES)))
        return f"{zlib.crc32(json.dumps(choices).encode()):08x}-{zlib.crc32(code.encode()):08x}"

    def run(self) -> None:
        """Train and sample, or resume; a run of other settings or code starts over."""
        key, env = self.key(), os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        if self.study.embedded:
            env |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        if self.folder.exists() and not (self.noted.exists() and self.noted.read_text() == key):
            shutil.rmtree(self.folder)
        if self.study.of and not self.folder.exists():
            self.copy()
        self.noted.parent.mkdir(parents=True, exist_ok=True)
        self.noted.write_text(key)
        flags = [*self.flags, "--seed", str(self.seed), "--out", str(self.out)]
        flags += ["--clip", "tiny"] if self.config().has("clip") else []
        done = subprocess.run([sys.executable, self.file(), *flags], cwd=ROOT, env=env)
        if done.returncode:  # the script has printed why
            raise UserError(f"{self.title} is not complete")

    def copy(self) -> None:
        """Take another study's trained run; UserError for one of other, or earlier, code."""
        source = Task(self.study.of, self.script, self.seed)
        if not (source.noted.exists() and source.noted.read_text() == source.key()):
            first = f"python tests/study.py {source.name} --scripts {self.script}"
            raise UserError(f"{self.title} needs {source.folder}, trained by this code: {first}")
        left = shutil.ignore_patterns("images", "performance.csv", "judged.npz")
        shutil.copytree(source.folder, self.folder, ignore=left)

    def measure(self) -> dict[str, pd.DataFrame]:
        """-> the rows of study.csv and of asked.csv."""
        flags = [self.script, *self.flags[:2], *self.data, "--out", str(self.out), "--clip", "tiny"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as stack:
            if self.study.choices:
                stack.enter_context(mock.patch.object(evaluate, "load_dataset", for_choices))
            evaluate.main(flags)
        run = compare.load_run(self.folder)
        facts = {"script": self.script, "study": self.name, "key": self.key()}
        facts |= {"hardware": hardware(), "date": str(datetime.date.today())}
        if self.study.choices:
            return {"trials": trial(run).assign(seed=self.seed, **facts)}
        rows = run["rows"].assign(seed=self.seed, **facts)
        asked = run["asked"].drop(columns="demand", errors="ignore")
        return {"study": rows, "asked": asked.assign(seed=self.seed, study=self.name)}


def for_choices(config, split: str = "train"):
    """As kit.data.load_dataset(), with the digits for choices in place of the test digits."""
    if split == "train":
        return load_dataset(config)
    return *judge.real_images(evaluate.Config(data_dir=DATA), choices=True), "choices"


def trial(run: dict) -> pd.DataFrame:
    """A row for each guidance scale, without real images and noise."""
    rows = run["rows"].dropna(subset="scale").set_index("scale")
    table = rows[rows["kind"] != "held-out"].copy()
    table["held_out_accuracy"] = rows.loc[rows["kind"] == "held-out", "accuracy"]
    if len(run["asked"]):
        shares = run["asked"].pivot_table("as_asked", "scale", "demand")
        table = table.join(shares.add_prefix("asked: "))
    costs = "parameters train_seconds train_steps batch_size sample_images_per_second".split()
    words = [name for name in table if name.startswith("asked: ")]
    return table[["n", *WITNESSES, "held_out_accuracy", *words, *costs]].reset_index()


def code_of(path: Path) -> str:
    """Its syntax tree as text, without docstrings: comments and docstrings change nothing."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node, False) is not None:
            del node.body[0]
    return ast.dump(tree)


def hardware() -> str:
    """The processor, as /proc/cpuinfo names it, and the number of threads."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        name = re.search(r"model name\s*: (.*)", info.read_text())[1]
    return f"{name}, {torch.get_num_threads()} threads"


def save(name: str, rows: pd.DataFrame, task: Task) -> None:
    """Replace the rows of a run."""
    path = RESULTS / f"{name}.csv"
    if path.exists():
        table = pd.read_csv(path)
        who = table["script"] if "script" in table else table["model"]
        same = (table["study"] == task.name) & (table["seed"] == task.seed)
        rows = pd.concat([table[~(same & (who == task.script))], rows])
    save_table(path, rows.sort_values(["study", "seed"], kind="stable"), "%.10g")


def perform(task: Task, commit: bool, anew: bool = False) -> None:
    name, here = "trials" if task.study.choices else "study", ["study", "script", "seed", "key"]
    path = RESULTS / f"{name}.csv"
    rows = pd.read_csv(path)[here].to_numpy().tolist() if path.exists() else []
    if anew:
        shutil.rmtree(task.folder, ignore_errors=True)
    elif [task.name, task.script, task.seed, task.key()] in rows:
        say(f"{task.title}: its rows are there")
        return
    say(task.title)
    task.run()
    for name, rows in task.measure().items():
        if len(rows):
            held = lock(PLACE / "rows")  # another process may work on other studies
            save(name, rows, task)
            held.release()
    if commit:
        line = ["git", "commit", "-qm", f"Study: {task.title}", RESULTS]
        subprocess.run(line, cwd=ROOT, check=True)


def main(argv: list[str] | None = None) -> None:
    config = tyro.cli(Config, args=argv, description=__doc__)
    if config.publish:
        import publish  # beside this file

        publish.main()
        return
    for name in config.studies or STUDIES:
        study = STUDIES[name]
        for seed in [x for x in study.seeds if x in (config.seeds or study.seeds)]:
            for script in [x for x in study.scripts if x in (config.scripts or study.scripts)]:
                perform(Task(name, script, seed), config.commit)


if __name__ == "__main__":
    main()
