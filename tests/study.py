"""The study behind the tables of docs/results.md: every script, its seeds, and five variants.

Commands  python tests/study.py                   all that is missing; takes hours, can be stopped
          python tests/study.py --publish         its tables and pictures, into docs/ and assets/
Writes    after each run its rows into docs/results/study.csv and asked.csv (with --commit, to git
          too); runs under results/study/
Again     a run is not made again if its rows are there for the same settings and code
"""

import ast
import contextlib
import dataclasses
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

import pandas as pd
import torch
from conftest import ROOT

import compare
import evaluate
from kit.base import UserError, cli, save_table, say
from kit.flags import Flags, flag, plain
from kit.locks import alone

PLACE, DATA = ROOT / "results" / "study", ROOT / "data"
RESULTS = ROOT / "docs" / "results"
LADDER = "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full"
SEVEN = *LADDER, "cgan", "cvae"
# What decides what is learned; what else a run needs (files, bars, messages) may change.
DECIDES = "common", "kit/attributes", "kit/captions", "kit/datasets", "kit/muon"
EPS = {  # a0 that predicts the noise: Ho et al. 2020 Eq. 14
    "return F.mse_loss(model(x_t, t), v)": "return F.mse_loss(model(x_t, t), eps)",
    "x0_hat = a.sqrt() * x_t - (1 - a).sqrt() * v  # Salimans & Ho Sec. 4":
        "x0_hat = (x_t - (1 - a).sqrt() * v) / a.sqrt().clamp(min=1e-4)",
}  # fmt: skip


@dataclass
class Study:
    scripts: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    flags: str = "--dataset mnist"
    embedded: bool = True  # what lies in assets/ is learned, whatever else there is
    of: str = ""  # its runs are copies of this study's, drawn again


COPY = "--dataset mnist --scales 1"
THREE = "--dataset quickdraw --classes cat,rainbow,train --per-class 1000"
STUDIES = {
    "mnist": Study(SEVEN),
    "eps": Study(("a0_eps",)),
    "no_ema": Study(("a4_full",), flags=COPY, of="mnist"),
    "eta0": Study(("a4_full",), flags=f"{COPY} --eta 0", of="mnist"),
    "steps6": Study(("a4_full",), flags=f"{COPY} --sample-steps 6", of="mnist"),
    "steps50": Study(("a4_full",), flags=f"{COPY} --sample-steps 50", of="mnist"),
    "mnist_60000": Study((*LADDER, "cgan"), (0,), embedded=False),
    "quickdraw": Study(SEVEN, (0,), THREE, embedded=False),
}


@dataclass
class Config(Flags):
    studies: list[str] = flag((), f"which: {', '.join(STUDIES)} (all)", use="positional")
    scripts: list[str] | None = flag(None, "of these alone")
    seeds: list[int] | None = flag(None, "of these alone", 0)
    publish: bool = flag(False, "write tables and pictures of what is measured, and run nothing")
    commit: bool = flag(False, "commit the rows of each run")


# ── One run ──


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
        self.flags = [*self.study.flags.split(), "--seed", str(self.seed), "--out", str(self.out)]
        self.data = ["--data-dir", str(DATA / "study" if self.study.embedded else DATA)]

    def file(self) -> Path:
        """The script: one of ours, or a0 with two lines changed."""
        if self.script != "a0_eps":
            return ROOT / f"{self.script}.py"
        text = (ROOT / "a0_uncond.py").read_text(encoding="utf-8")
        for old, new in EPS.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = PLACE / "a0_eps.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def module(self):
        spec = importlib.util.spec_from_file_location(self.script, self.file())
        module = sys.modules[self.script] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def key(self) -> str:
        """Differs where settings or code do that decide what is learned and drawn."""
        choices = plain(dataclasses.asdict(self.module().Config.parse(self.flags)))
        free = compare.FREE - {"scales"}
        choices = {name: value for name, value in choices.items() if name not in free}
        files = [self.file(), *(ROOT / f"{name}.py" for name in DECIDES)]
        code = "".join(code_of(path) for path in files)
        return f"{zlib.crc32(json.dumps(choices).encode()):08x}-{zlib.crc32(code.encode()):08x}"

    def run(self) -> None:
        """Train and draw, or go on; a run on disk of other settings or code starts over."""
        noted, key, env = self.folder.with_suffix(".key"), self.key(), dict(os.environ)
        if self.study.embedded:
            env |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        if self.folder.exists() and not (noted.exists() and noted.read_text() == key):
            shutil.rmtree(self.folder)
        if self.study.of and not self.folder.exists():
            self.copy()
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(key)
        env["PYTHONPATH"] = str(ROOT)
        has_clip = "clip" in self.module().Config.__dataclass_fields__
        flags = [*self.flags, *self.data, *(["--clip", "tiny"] if has_clip else [])]
        done = subprocess.run([sys.executable, self.file(), *flags], cwd=ROOT, env=env)
        if done.returncode:  # it has said why
            raise UserError(f"{self.name}, {self.script}, seed {self.seed} is not complete")

    def copy(self) -> None:
        """The run of another study, without what it has drawn; for no_ema, with the last weights
        in place of their mean.
        """
        source = Task(self.study.of, self.script, self.seed).folder
        left = shutil.ignore_patterns("samples*", "performance.csv", "judged*")
        shutil.copytree(source, self.folder, ignore=left)
        if self.name == "no_ema":
            last = self.folder / "checkpoints" / "last.pt"
            state = torch.load(last)
            torch.save(state | {"ema": state["model"]}, last)

    def measure(self) -> dict[str, pd.DataFrame]:
        """-> the rows of study.csv and of asked.csv."""
        flags = ["--dataset", self.dataset, "--out", str(self.out), *self.data]
        flags = [self.script, *flags, "--clip", "tiny", "--extractor", "judge"]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluate.main(flags)
        run = compare.load_run(self.folder, self.dataset)
        facts = {"study": self.name, "key": self.key(), "hardware": hardware()}
        facts["date"] = str(datetime.date.today())
        rows = compare.with_settings(run["rows"], run).rename(columns=compare.IN_CSV)
        rows["seed"] = self.seed
        asked = run["asked"].assign(seed=self.seed, study=self.name)
        if not asked.empty:
            asked["model"] = self.script
        return {"study": rows.assign(script=self.script, **facts), "asked": asked}


def code_of(path: Path) -> str:
    """Its syntax tree as text, without docstrings: comments and words change nothing."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node, False) is not None:
            del node.body[0]
    return ast.dump(tree)


def hardware() -> str:
    """As /proc/cpuinfo names the processor, and how many threads work."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        name = re.search(r"model name\s*: (.*)", info.read_text())[1]
    return f"{name}, {torch.get_num_threads()} threads"


# ── All runs ──


def read(name: str) -> pd.DataFrame:
    path = RESULTS / f"{name}.csv"
    return pd.read_csv(path, keep_default_na=True) if path.exists() else pd.DataFrame()


def save(name: str, rows: pd.DataFrame, task: Task) -> None:
    """Put the rows of a run in place of its earlier ones."""
    table = read(name)
    if len(table):
        who = "script" if "script" in table else "model"
        same = (table["study"] == task.name) & (table["seed"] == task.seed)
        table = table[~(same & (table[who] == task.script))]
    table = pd.concat([table, rows]).sort_values(["study", "seed"], kind="stable")
    save_table(RESULTS / f"{name}.csv", table.to_dict("records"), "%.10g")


def there(task: Task) -> bool:
    table = read("study")
    if table.empty:
        return False
    same = (table["study"] == task.name) & (table["seed"] == task.seed)
    return task.key() in {*table[same & (table["script"] == task.script)]["key"]}


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    if config.publish:
        import publish  # beside this file

        publish.main()
        return
    for name in config.studies or STUDIES:
        study = STUDIES[name]
        tasks = [Task(name, script, seed) for seed in study.seeds for script in study.scripts]
        for task in tasks:
            if task.script not in (config.scripts or study.scripts):
                continue
            if task.seed not in (config.seeds or study.seeds):
                continue
            what = f"{name}, {task.script}, seed {task.seed}"
            if there(task):
                say(f"{what}: its rows are there")
                continue
            say(what)
            task.run()
            for table, rows in task.measure().items():
                if len(rows):
                    with alone(PLACE / "rows", "the study's rows"):  # two may work on parts of it
                        save(table, rows, task)
            if config.commit:
                subprocess.run(["git", "add", RESULTS], cwd=ROOT, check=True)
                message = f"Study: {what}"
                subprocess.run(["git", "commit", "-qm", message, RESULTS], cwd=ROOT, check=True)


if __name__ == "__main__":
    cli(main)
