"""A run: its folder, its checkpoint, and the loop over its training steps."""

import contextlib
import json
import math
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from importlib import metadata
from pathlib import Path

import torch

from kit import processes
from kit.captions import Captions
from kit.config import RETRAIN, Config
from kit.data import load_dataset
from kit.files import RANK, ROOT, UserError, load_tensors, lock, progress, reading
from kit.files import save_file, save_table, say

PACKAGES = "torch", "torchvision", "numpy", "pandas", "matplotlib"


class Run:
    """results/<dataset>/<script>/: what a run has on disk, and how far it has come.

    step     optimiser steps that are done
    saved    the choices and facts that the checkpoint was trained with; see facts
    losses   a script appends name -> tensor at each step
    encoder  a script that reads text sets it: name, crc32, dim, encode(texts) -> (n, dim)
    """

    LOG_EVERY, SAVE_EVERY = 20, 30  # steps, seconds

    def __init__(self, config: Config):
        self.config, self.device = config, processes.pick_device(config.device)
        self.batch_size = processes.share_of(config.batch_size)  # of this process
        self.folder, self.last = config.folder, config.checkpoint
        self.images, self.metrics = self.folder / "images", self.folder / "metrics"
        self.shipped = self.last.parent == ROOT / "assets"  # weights of this repository
        if self.shipped:
            self.images = self.folder.with_name("shipped")
        self.step, self.saved, self.checkpoint = 0, {}, None
        self.losses, self.rows, self.facts, self.encoder, self.lock = [], [], {}, None, None
        if self.last.exists() and not config.fresh:
            self.read_checkpoint()
        elif config.prompt is not None:
            raise self.nothing_trained()
        if config.clip == "auto":
            config.clip = self.saved.get("text_encoder") or "auto"
        free = config.FREE | config.SAMPLING | ({"seed"} if config.prompt is not None else set())
        self.check({x: value for x, value in config.choices().items() if x not in free})

    def read_checkpoint(self) -> None:
        with reading(self.last, RETRAIN):
            state = load_tensors(self.last)
            if "losses" not in state:
                raise UserError(
                    f"{self.folder} was made by an earlier version; --fresh moves it aside and "
                    "trains again, or choose another --out"
                )
            self.checkpoint, self.step, self.saved = state, state["step"], state["config"]
            self.rows = state["losses"]
        if processes.mean([self.step]) != [self.step]:
            raise UserError(f"{self.last} differs between the machines; copy it to all of them")

    def nothing_trained(self) -> UserError:
        command = f"python {self.config.script}.py --dataset {self.config.dataset}"
        return UserError(f"nothing is trained yet in {self.config.folder}; first: {command}")

    def check(self, values: dict) -> None:
        """UserError if the run on disk was trained with other values."""
        for name, value in values.items():
            old = self.saved.get(name, value)
            if old != value and self.shipped:
                raise self.nothing_trained()
            if old != value:
                old, value = (textwrap.shorten(str(x), 60, placeholder=" ...") for x in (old, value))
                raise UserError(
                    f"{self.folder} was trained with {name} {old}, not {value}; repeat the same "
                    "flags, choose another --out, or start over with --fresh"
                )

    def load(self, **modules) -> None:
        """Restore modules (name -> module or optimiser) from the checkpoint."""
        with reading(self.last, RETRAIN):
            for name, module in modules.items():
                module.load_state_dict(self.checkpoint[name])

    def load_data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """-> training images uint8 (N, 28, 28), labels int64 (N,), both on the device."""
        pixels, labels, source = load_dataset(self.config)
        crc32 = zlib.crc32(labels.numpy(), zlib.crc32(pixels.numpy()))
        self.facts |= {"data_source": source, "data_crc32": crc32, "image_count": len(pixels)}
        return pixels.to(self.device), labels.to(self.device)

    def captions(self, images: torch.Tensor, labels: torch.Tensor) -> Captions:
        """The captions of the training images."""
        captions = Captions(self.config, images, labels, self.saved.get("attributes"))
        self.facts["attributes"] = captions.chosen
        return captions

    def half(self) -> torch.dtype | None:
        """bfloat16 where the device is fast in it, else None: GPUs from 2020 on (compute capability
        8), and processors with AVX-512 BF16 or AMX.
        """
        if self.device.type == "cuda":
            fast = torch.cuda.get_device_capability(self.device) >= (8, 0)
        else:
            known = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.6 and later
            fast = known.get("avx512_bf16") or known.get("amx_bf16")
            fast = fast and self.device.type == "cpu"
        return torch.bfloat16 if fast else None

    def autocast(self):
        """In this block convolutions and matrix products use bfloat16, where that is fast."""
        half = self.half()
        return torch.autocast(self.device.type, half) if half else contextlib.nullcontext()

    def parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        """-> model; under torchrun its gradients are averaged over all processes."""
        if not hasattr(model, "replica"):
            object.__setattr__(model, "replica", processes.parallel(model))
        return model.replica

    def steps(self, **modules):
        """Yield the number of each step still to do, from 0, and save the modules (name -> module
        or optimiser) every 30 s, at the end, and when Ctrl-C or SIGTERM asks to stop.
        """
        total, batch = self.config.train_steps, self.config.batch_size
        self.facts["parameters"] = sum(weight.numel() for weight in modules["model"].parameters())
        self.begin()
        if self.step:
            say(f"{self.folder}: resuming from step {self.step} of {total}")
            self.load(**modules)
        self.restore_rng()
        bar = progress(desc="training", total=total * batch, initial=self.step * batch, unit="image")
        saved = start = time.perf_counter()
        with bar, stop_requests() as asked:
            while self.step < total:
                yield self.step
                self.step += 1
                due = bool(asked) or time.perf_counter() - saved > self.SAVE_EVERY
                at_once = due and processes.COUNT == 1  # several must agree when
                if self.step % self.LOG_EVERY and self.step < total and not at_once:
                    continue
                bar.update(len(self.losses) * batch)
                due, stop = self.log(time.perf_counter() - start, due, bool(asked))
                bar.set_postfix_str(f"loss {[*self.rows[-1].values()][1]:.3f}", refresh=False)
                if due or self.step == total:
                    self.save(modules)
                    saved = time.perf_counter()
                if stop:
                    bar.close()
                    say(f"{self.folder}: saved at step {self.step} of {total}; the same command "
                        "(without --fresh) continues")  # fmt: skip
                    sys.exit(128 + (asked or [signal.SIGTERM])[0])
                start = time.perf_counter()

    def log(self, seconds: float, due: bool, stop: bool) -> tuple[bool, bool]:
        """Append a row of mean losses -> due, stop: whether any process asks for it."""
        names, images = [*self.losses[0]], len(self.losses) * self.config.batch_size
        means = [torch.stack([x[name] for x in self.losses]).mean().item() for name in names]
        *means, due, stop = processes.mean([*means, float(due), float(stop)])
        for name, value in zip(names, means):
            if not math.isfinite(value):
                raise UserError(
                    f"the {name} is {value} at step {self.step}; train with a lower --lr and --fresh "
                    f"(checkpoint of an earlier step: {self.last})"
                )
        self.rows.append({"step": self.step, **dict(zip(names, means)),
                          "images_per_second": round(images / seconds, 1)})  # fmt: skip
        self.losses = []
        return due > 0, stop > 0

    def save(self, modules: dict) -> None:
        """Write the checkpoint, then loss.csv."""
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        state = {name: module.state_dict() for name, module in modules.items()}
        state |= {"step": self.step, "config": self.saved, "losses": self.rows}
        state["rng"] = processes.gather(rng)
        if RANK == 0:
            save_file(self.last, lambda file: torch.save(state, file))
            try:
                save_table(self.metrics / "loss.csv", self.rows, "%.6g")
            except UserError as error:  # it may be open in a spreadsheet
                say(f"{error.text}; the training goes on")

    def restore_rng(self) -> None:
        """The random state of this process: the checkpoint's, or a new one."""
        if self.step and RANK < len(self.checkpoint["rng"]):
            rng = self.checkpoint["rng"][RANK]
            torch.set_rng_state(rng["cpu"])
            if "cuda" in rng and self.device.type == "cuda":
                torch.cuda.set_rng_state(rng["cuda"], self.device)
        elif RANK > 0:  # main() has seeded the first one
            torch.manual_seed(zlib.crc32(f"{self.config.seed} {self.step} {RANK}".encode()))

    def begin(self) -> None:
        """Lock the folder, move an earlier run aside, write config.json: choices, facts, versions.

        UserError if the run on disk was trained with other data or another text encoder.
        """
        config = self.config
        if self.encoder is not None:
            self.facts |= {"text_encoder": self.encoder.name, "text_encoder_crc32": self.encoder.crc32}
        self.check({name: self.facts[name] for name in self.facts if name != "text_encoder"})
        facts = {x: value for x, value in self.saved.items() if x not in config.choices()}
        if not facts:
            facts = {"script": config.script, "family": config.family, "device": str(self.device),
                     "autocast": str(self.half()), "processes": processes.COUNT,
                     "git_revision": git_revision(), "python": sys.version.split()[0],
                     "packages": {name: metadata.version(name) for name in PACKAGES}}  # fmt: skip
        self.saved = config.choices() | facts | {"description": config.description} | self.facts
        if RANK > 0:
            return
        self.lock = self.lock or lock(self.folder, wait=False)
        if not self.step and (self.last.exists() or self.images.exists()):
            aside = self.folder.with_name(f".{self.folder.name}_{time.time():.2f}")
            self.folder.rename(aside)
            say(f"the earlier run is now in {aside}")
        text = json.dumps(self.saved, indent=2)
        save_file(self.folder / "config.json", lambda file: file.write(text.encode()))

    def finish(self) -> None:
        """Unlock the folder."""
        if self.lock:
            self.lock.release()


@contextlib.contextmanager
def stop_requests():
    """-> a list: the signals SIGINT and SIGTERM that arrive in this block. Ctrl-C twice ends it."""
    asked, before = [], {}

    def note(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def git_revision() -> str | None:
    """Of the repository that holds the scripts, if they are in one."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, check=True, timeout=10).stdout.decode().strip()
    return None


def read_config(folder: Path) -> dict:
    """A run's config.json. UserError if it is damaged, or made by an earlier version."""
    path = folder / "config.json"
    with reading(path, "its script's command writes it again, without training"):
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        for name in ("script", "seed", "classes", "family", "image_count"):
            config[name]
        if "data_crc32" not in config:
            raise UserError(f"{folder} was made by an earlier version; train again with --fresh")
        return config

