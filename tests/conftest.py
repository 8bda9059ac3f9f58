"""Shared by the tests: the command line in a subprocess, a local server, a dead network."""

import argparse
import contextlib
import csv
import functools
import http.server
import importlib
import io
import os
import shutil
import struct
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
if "PYTEST_XDIST_WORKER" in os.environ:  # two that take all cores each are ten times as slow
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import common  # noqa: E402
from kit import attributes, base, downloads, images, tiny_clip  # noqa: E402
from kit.clip import import_clip  # noqa: E402
from kit.datasets import DIGITS  # noqa: E402
from kit.encoders import load_clip  # noqa: E402
from kit.run import Run  # noqa: E402

CPU = torch.device("cpu")
TINY = "a4_full.py --clip tiny --train-steps 60 --batch-size 16 --samples 30 --sample-steps 3"
TINY += " --scales 1,2"


def data_args(dataset="mnist", classes=DIGITS, **others):
    """What functions read of a script's choices, for one data set."""
    choices = {"emnist_split": None, "per_class": None, "data_dir": Path("data")} | others
    return argparse.Namespace(dataset=dataset, classes=list(classes), **choices)


@pytest.fixture(scope="session")
def measured_once(tmp_path_factory):
    """data/attributes and data/captions of all tests in this process."""
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(scope="session")
def warm(measured_once):
    """warm(folder) puts what is measured of the embedded digits into its data/, if it has none."""
    config = data_args(data_dir=measured_once)
    pixels, labels = images.embedded_mnist("train")
    them = tiny_clip.captions_of(config, pixels, labels)
    encoder = load_clip("tiny", config, CPU)
    run = argparse.Namespace(config=config, encoder=encoder, text_vectors={}, device=CPU)
    Run.encode(run, them.sentences)

    def copy(folder):
        for name in ("attributes", "captions"):
            if not (Path(folder) / "data" / name).exists():
                shutil.copytree(measured_once / name, Path(folder) / "data" / name)

    return copy


@pytest.fixture(scope="session", autouse=True)
def share_what_is_measured(measured_once):
    """Thickness and slant of the embedded digits, vectors of their captions: found by content, so
    that the tests need not make them again and again.
    """
    kept = base.kept

    def once(folder, *others):
        shared = folder.name in ("attributes", "captions")
        return kept(measured_once / folder.name if shared else folder, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "kept", once)
        patch.setattr(attributes, "kept", once)
        yield


@pytest.fixture(scope="session")
def offline_env(tmp_path_factory):
    """An environment whose network is dead at once and whose home is empty: no cache is used."""
    dead = "http://127.0.0.1:9"
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), dead)
    return (
        os.environ
        | proxies
        | {"HOME": str(tmp_path_factory.mktemp("home")), "no_proxy": "", "NO_PROXY": ""}
    )


@pytest.fixture(scope="session")
def cli(offline_env, warm):
    """cli("a4_full.py --n 3", cwd, check=0) runs it as a user would and looks at its exit code."""

    def run(command, cwd, check=0, env=None):
        script, *flags = command if isinstance(command, list) else command.split()
        line = [sys.executable, script if script == "-m" else str(ROOT / script), *flags]
        if check == 0:
            warm(cwd)
        done = subprocess.run(
            line,
            cwd=cwd,
            env=offline_env | (env or {}),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == check, done.stderr
        return done

    return run


def go_offline(patch, env):
    """The dead network of offline_env for this process."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "HOME"):
        patch.setenv(name, env[name])
        if name != "HOME":
            patch.delenv(name.upper(), raising=False)
    patch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first use


@pytest.fixture
def offline(monkeypatch, offline_env):
    go_offline(monkeypatch, offline_env)


def no_answer(*_, **__):
    """In place of downloads.ask(): a dead network, at once."""
    raise downloads.NoAnswer


def idx(array):
    """The IDX format of MNIST's and EMNIST's files: magic number, sizes, bytes."""
    return (
        struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
        + array.astype("uint8").tobytes()
    )


# OpenAI's CLIP(...): ViT-B/32's text tower (77 tokens, width 512, 8 heads, 12 layers), 512 numbers
# a text; an image side of one small layer, which costs little.
STAND_IN = 512, 32, 1, 64, 16, 77, 49408, 512, 8, 12


def save_openai_clip(folder, geometry, archive=True):
    """Random weights in OpenAI's formats: a JIT archive with its extra buffers, a state dict."""
    clip = import_clip()
    torch.manual_seed(0)
    model = clip.model.CLIP(*geometry).eval()
    size = geometry[1]
    for name, value in {
        "input_resolution": size,
        "context_length": 77,
        "vocab_size": 49408,
    }.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    example = {
        "encode_image": torch.zeros(1, 3, size, size),
        "encode_text": torch.zeros(1, 77, dtype=torch.long),
    }
    clip.model.convert_weights(model.float())
    extra = {"input_resolution", "context_length", "vocab_size"}
    state = {name: p for name, p in model.state_dict().items() if name not in extra}
    torch.save(state, folder / "state.pt")
    if archive:
        traced = torch.jit.trace_module(model, example, check_trace=False)
        torch.jit.save(traced, folder / "jit.pt")


@pytest.fixture
def coarse_figures(monkeypatch):
    """With all that is in them, but of few pixels: for tests that draw many and look at none."""
    savefig = Figure.savefig

    def coarse(*args, dpi=100, **others):
        savefig(*args, dpi=dpi / 4, **others)

    monkeypatch.setattr(Figure, "savefig", coarse)


@pytest.fixture
def here(offline, monkeypatch, capfd):
    """As cli, but in this process, which spares the seconds that importing torch takes."""

    def run(command, cwd, check=0):
        script, *flags = command if isinstance(command, list) else command.split()
        monkeypatch.chdir(cwd)
        module, code = importlib.import_module(script.removesuffix(".py")), 0
        try:
            common.cli(lambda: module.main(flags))
        except SystemExit as stopped:
            code = stopped.code or 0
        done = argparse.Namespace(
            returncode=code, **dict(zip(("stdout", "stderr"), capfd.readouterr()))
        )
        assert done.returncode == check, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def typed_here(offline_env):
    """As here, for what tests share: typed_here("compare.py", folder) -> stdout and stderr."""

    def run(command, cwd):
        script, *flags = command.split()
        module = importlib.import_module(script.removesuffix(".py"))
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            go_offline(patch, offline_env)
            patch.chdir(cwd)
            module.main(flags)
        return argparse.Namespace(stdout=out.getvalue(), stderr=err.getvalue())

    return run


class Handler(http.server.SimpleHTTPRequestHandler):
    truncate = None  # a file name served only half

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        data = source.read()
        self.server.requests.append(self.path)
        outputfile.write(
            data[: len(data) // 2] if self.path.endswith(self.server.truncate or "\0") else data
        )


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An HTTP server on this machine: server.root is its folder, server.url its address."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    root = tmp_path / "served"
    root.mkdir()
    httpd = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=root)
    )
    httpd.requests, httpd.truncate, httpd.root = [], None, root
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/"
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


# ── A finished run ──


@pytest.fixture(scope="session")
def finished(typed_here, tmp_path_factory):
    """A finished run at tiny size; -> the folder it was started in. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    typed_here(TINY, folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def run_folder(folder, script="a4_full"):
    return folder / "results" / "mnist" / script


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))
