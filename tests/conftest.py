"""Shared by the tests: commands in this process and in one of their own, a dead network, a run."""

import argparse
import atexit
import contextlib
import csv
import functools
import http.server
import importlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
if "PYTEST_XDIST_WORKER" in os.environ:  # two that take all cores each are ten times as slow
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from kit.clip import clip_module  # noqa: E402
from kit.words import DIGITS  # noqa: E402

CPU = torch.device("cpu")
TINY = "a4_full.py --clip tiny --train-steps 60 --batch-size 16 --samples 30 --sample-steps 3"
TINY += " --scales 1 2"
SMALL = "--train-steps 4 --batch-size 8 --samples 20 --sample-steps 2"
HERE = "127.0.0.1"
DEAD = dict.fromkeys("http_proxy https_proxy HTTP_PROXY HTTPS_PROXY".split(), f"http://{HERE}:9")
DEAD |= {"no_proxy": HERE, "NO_PROXY": HERE}  # nothing listens on port 9


def pytest_configure():
    """A folder for all processes of this session: an empty home, a cache. Hosts are refused."""
    if "TESTS_FOLDER" not in os.environ:
        os.environ["TESTS_FOLDER"] = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, os.environ["TESTS_FOLDER"], True)
    shared = Path(os.environ["TESTS_FOLDER"])
    for name in ("home", "data/cache"):
        (shared / name).mkdir(parents=True, exist_ok=True)
    os.environ |= DEAD | {"HOME": str(shared / "home"), "PYTHONPATH": str(ROOT)}


def warm(folder: Path) -> None:
    """Let the commands in folder use what other tests have measured and read there already."""
    cache = Path(folder) / "data" / "cache"
    if not cache.exists():
        cache.parent.mkdir(exist_ok=True)
        cache.symlink_to(Path(os.environ["TESTS_FOLDER"]) / "data" / "cache")


def ours(pattern: str) -> list[Path]:
    """The files of the repository with such names: what git has or would add, so no .venv."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern]
    if (ROOT / ".git").exists() and shutil.which("git"):
        told = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8").stdout
        paths = [ROOT / name for name in told.split("\0") if name]
    else:
        skipped = re.compile(r"/(\.|data/|results/|__pycache__|.*site-packages)")
        paths = [x for x in ROOT.rglob(pattern) if not skipped.search(f"/{x.relative_to(ROOT)}")]
    return [path for path in paths if path.is_file()]


def data_args(dataset="mnist", classes=DIGITS, **others):
    """What functions read of a script's choices, for one data set."""
    data_dir = Path(os.environ.get("TESTS_FOLDER", "")) / "data"
    choices = {"emnist_split": None, "per_class": None, "data_dir": data_dir, "name": dataset}
    choices |= {"dataset": dataset, "classes": tuple(classes), "clip": "tiny"}
    return argparse.Namespace(**choices | others)


@pytest.fixture(scope="session")
def cli():
    """cli("a4_full.py --n 3", folder) runs it as a user would. check: the exit code expected."""

    def run(command, cwd, check=0, env=()):
        script, *flags = command if isinstance(command, list) else command.split()
        line = [sys.executable, str(ROOT / script), *flags]
        warm(cwd)
        env = os.environ | dict(env)
        done = subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == check, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def here():
    """As cli, but in this process, which saves the seconds that importing torch takes."""

    def run(command, cwd, check=0):
        script, *flags = command if isinstance(command, list) else command.split()
        module, code = importlib.import_module(script.removesuffix(".py")), 0
        out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
        warm(cwd)
        os.chdir(cwd)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                module.main(flags)
        except SystemExit as stop:
            code = stop.code or 0
            if isinstance(code, str):  # what Python itself does
                print(code, file=err)
                code = 1
        finally:
            os.chdir(before)
            if Path(module.__file__).parent != ROOT:  # another test's a6_mine is another module
                del sys.modules[module.__name__]
        done = argparse.Namespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
        assert done.returncode == check, done.stderr
        return done

    return run


def only_error(done, *words) -> str:
    """The one line of an error, in which all these words stand; no traceback."""
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "Traceback" not in done.stderr and all(word in line for word in words), done.stderr
    return line


@pytest.fixture
def coarse_figures(monkeypatch):
    """With all that is in them, but of few pixels: for tests that make many and look at none."""
    true = Figure.savefig
    coarse = lambda *args, dpi=100, **others: true(*args, dpi=dpi / 4, **others)  # noqa: E731
    monkeypatch.setattr(Figure, "savefig", coarse)


@pytest.fixture(scope="session")
def finished(here, tmp_path_factory):
    """A finished run at tiny size; -> the folder it was started in. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    here(TINY, folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy", symlinks=True)


def run_folder(folder, script="a4_full"):
    return folder / "results" / "mnist" / script


def last_of(folder, script="a4_full"):
    return run_folder(folder, script) / "checkpoints" / "last.pt"


def contents(folder):
    """Path -> bytes of every file; locks, which are empty, are left out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: path.read_bytes() for path in files if path.suffix != ".lock"}


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def idx(array):
    """The IDX format of MNIST's and EMNIST's files: magic number, sizes, bytes."""
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype("uint8").tobytes()


# OpenAI's CLIP(...): ViT-B/32's text tower, and an image side of one small layer.
STAND_IN = 512, 32, 1, 64, 16, 77, 49408, 512, 8, 12


def save_openai_clip(folder, geometry):
    """Random weights in OpenAI's formats: a JIT archive with its extra buffers, a state dict."""
    torch.manual_seed(0)
    model, size = clip_module("model").CLIP(*geometry).eval(), geometry[1]
    extra = {"input_resolution": size, "context_length": 77, "vocab_size": 49408}
    for name, value in extra.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    clip_module("model").convert_weights(model.float())
    state = {name: p for name, p in model.state_dict().items() if name not in extra}
    torch.save(state, folder / "state.pt")
    image, text = torch.zeros(1, 3, size, size), torch.zeros(1, 77, dtype=torch.long)
    example = {"encode_image": image, "encode_text": text}
    traced = torch.jit.trace_module(model, example, check_trace=False)
    torch.jit.save(traced, folder / "jit.pt")


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        data, half = source.read(), self.path.endswith(self.server.truncate or "\0")
        self.server.requests.append(self.path)
        outputfile.write(data[: len(data) // 2] if half else data)


@pytest.fixture
def server(tmp_path):
    """An HTTP server of the folder .root at .url; .requests; .truncate: a name to send half of."""
    root = tmp_path / "served"
    root.mkdir()
    handler = functools.partial(Handler, directory=root)
    httpd = http.server.ThreadingHTTPServer((HERE, 0), handler)
    httpd.requests, httpd.truncate, httpd.root = [], None, root
    httpd.url = f"http://{HERE}:{httpd.server_port}/"
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
