"""A run: its folder, its checkpoint, and the loop over its training steps."""

import json
import math
import shutil
import subprocess
import sys
import time
import zlib
from importlib import metadata
from pathlib import Path

import torch

from kit import files
from kit.captions import Captions
from kit.config import RETRAIN, Config
from kit.data import load_dataset
from kit.files import COUNT, RANK, ROOT, UserError, mean_of_processes, reading, say

PACKAGES = "torch", "torchvision", "numpy", "pandas", "matplotlib"
LOG_EVERY, SAVE_EVERY = 20, 30  # steps, seconds
RANDOM = {"cpu": torch, "cuda": torch.cuda}  # where each generator's state is read and set


class Run:
    """results/<dataset>/<script>/: its files, and how far training has progressed (step)."""

    def __init__(self, config: Config):
        self.config, self.device = config, files.pick_device(config.device)
        if config.batch_size % COUNT:
            raise UserError(f"--batch-size must be a multiple of {COUNT} (processes)")
        self.batch_size = config.batch_size // COUNT  # images per step of this process
        self.folder, self.last = config.folder, config.checkpoint
        self.embedded = self.last.parent == ROOT / "assets"  # weights that come with the repository
        self.images = self.folder.with_name("embedded") if self.embedded else self.folder / "images"
        self.metrics = self.folder / "metrics"
        self.step, self.rows, self.replicas, self.facts, self.lock = 0, [], {}, {}, None
        self.losses = []  # since the last row of loss.csv; a script appends {name: tensor}
        self.encoder = None  # set by scripts that read text: name, crc32, dim, encode_text(texts)
        self.checkpoint, self.saved = None, {}  # saved: what it was trained with
        if self.last.exists() and not config.fresh:
            with reading(self.last, RETRAIN):
                self.checkpoint = files.load_tensors(self.last)
                self.saved, self.step = self.checkpoint["config"], self.checkpoint["step"]
                self.rows = self.checkpoint["losses"]
        if not self.step and config.prompt is not None:
            first = f"first: python {config.script}.py --dataset {config.dataset}"
            raise UserError(f"no trained model in {self.folder}; {first}")
        if config.clip == "auto":
            config.clip = self.saved.get("text_encoder") or "auto"
        free = config.FREE | config.SAMPLING | ({"seed"} if config.prompt is not None else set())
        self.check({x: value for x, value in config.choices().items() if x not in free})

    def check(self, values: dict) -> None:
        """UserError if the run on disk was trained with other values."""
        for name, value in values.items():
            old = self.saved.get(name, value)
            if old != value:
                text = f"{self.last} was trained with {name} {str(old)[:60]}, not {str(value)[:60]}"
                remedy = "repeat its flags, choose another --out, or start over with --fresh"
                remedy = "leave that flag out, or train first" if self.embedded else remedy
                raise UserError(f"{text}; {remedy}")

    def load(self, **modules) -> None:
        """Restore modules (name -> module or optimiser) from the checkpoint."""
        with reading(self.last, RETRAIN):
            for name, module in modules.items():
                module.load_state_dict(self.checkpoint[name])

    def load_data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """-> training images uint8 (N, 28, 28), labels int64 (N,), both on the device."""
        pixels, labels, source = load_dataset(self.config)
        crc32 = zlib.crc32(labels.numpy(), zlib.crc32(pixels.numpy()))
        self.facts |= {"data_source": source, "image_count": len(pixels), "data_crc32": crc32}
        return pixels.to(self.device), labels.to(self.device)

    def captions(self, images: torch.Tensor, labels: torch.Tensor) -> Captions:
        captions = Captions(self.config, images, labels, self.saved.get("attributes"))
        self.facts["attributes"] = captions.chosen
        return captions

    def autocast(self):
        """A block in which convolutions and matrix products use bfloat16, if that is fast."""
        return torch.autocast(self.device.type, torch.bfloat16, files.fast_bfloat16(self.device))

    def parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        """-> model; under torchrun, wrapped so that gradients are averaged over all processes."""
        if COUNT > 1 and model not in self.replicas:
            self.replicas[model] = torch.nn.parallel.DistributedDataParallel(model)
        return self.replicas.get(model, model)

    def steps(self, **modules):
        """Yield each remaining step; now and then, save modules (name -> module or optimiser)."""
        total, batch = self.config.train_steps, self.config.batch_size
        self.facts["parameters"] = sum(weight.numel() for weight in modules["model"].parameters())
        self.begin()
        if self.step:
            say(f"{self.folder}: resuming from step {self.step} of {total}")
            self.load(**modules)
            for kind in self.checkpoint["rng"].keys() & {"cpu", self.device.type}:
                RANDOM[kind].set_rng_state(self.checkpoint["rng"][kind])
        if RANK > 0:  # each process draws different images
            torch.manual_seed(zlib.crc32(f"{self.config.seed} {self.step} {RANK}".encode()))
        sizes = {"total": total * batch, "initial": self.step * batch, "unit": "image"}
        saved = start = time.perf_counter()
        with files.progress(desc="training", **sizes) as bar, files.stop_requests() as asked:
            while self.step < total:
                yield self.step
                self.step += 1
                due = asked or self.step == total or time.perf_counter() - saved > SAVE_EVERY
                # Several processes must agree on when to save.
                if self.step % LOG_EVERY and self.step < total and not (due and COUNT == 1):
                    continue
                bar.update(len(self.losses) * batch)
                due, stop = self.log(time.perf_counter() - start, [bool(due), bool(asked)])
                bar.set_postfix_str(f"loss {[*self.rows[-1].values()][1]:.3f}", refresh=False)
                if due:
                    self.save(modules)
                    saved = time.perf_counter()
                if stop:
                    bar.close()
                    say(f"saved at step {self.step} of {total}; the same command resumes it")
                    mean_of_processes([0.0])  # wait until the first one has saved
                    sys.exit(128 + (asked or [15])[0])
                start = time.perf_counter()

    def log(self, seconds: float, requests: list[bool]) -> list[bool]:
        """Append mean losses to the rows of loss.csv -> for each request, if a process made it."""
        names, images = [*self.losses[0]], len(self.losses) * self.config.batch_size
        means = [torch.stack([x[name] for x in self.losses]).mean().item() for name in names]
        means = mean_of_processes([*means, *map(float, requests)])
        row = {"step": self.step, **dict(zip(names, means)), "images_per_second": images / seconds}
        for name in names:
            if not math.isfinite(row[name]):
                remedy = "start over with --fresh and a lower --lr (the last checkpoint is kept)"
                raise UserError(f"the {name} is {row[name]} at step {self.step}; {remedy}")
        self.rows.append(row)
        self.losses = []
        return [share > 0 for share in means[len(names) :]]

    def save(self, modules: dict) -> None:
        """Write the checkpoint, then loss.csv."""
        state = {name: module.state_dict() for name, module in modules.items()}
        state |= {"step": self.step, "config": self.saved, "losses": self.rows}
        state["rng"] = {x: RANDOM[x].get_rng_state() for x in {"cpu", self.device.type} & {*RANDOM}}
        if RANK == 0:
            files.save_file(self.last, lambda file: torch.save(state, file))
            try:
                files.save_table(self.metrics / "loss.csv", self.rows, "%.6g")
            except UserError as error:  # it may be open in a spreadsheet
                say(f"{error.text}; training continues")

    def begin(self) -> None:
        """Lock the folder, move an old run aside, delete outdated samples, write config.json."""
        facts, now = facts_of(self.config, self.device), {"device": str(self.device)}
        if self.encoder is not None:
            self.facts["text_encoder_crc32"] = self.encoder.crc32
            now["text_encoder"] = self.encoder.name  # its path may have changed
        self.check(self.facts)
        self.saved = facts | self.saved | self.config.choices() | self.facts | now
        if RANK > 0:
            return
        self.lock = self.lock or files.lock(self.folder)
        if not self.step and (self.last.exists() or self.images.exists()):
            aside = self.folder.with_name(f".{self.folder.name}_{time.time():.2f}")
            with files.writing(aside):
                self.folder.rename(aside)
            say(f"the earlier run is now in {aside}")
        elif not sampled_alike(self.config):
            for path in self.images.glob("*.npz"):
                path.unlink()
        text = json.dumps(self.saved, indent=2).encode()
        files.save_file(self.folder / "config.json", lambda file: file.write(text))


def sampled_alike(config: Config) -> bool:
    """Whether the samples on disk, if any, were generated with these choices."""
    path, now = config.folder / "config.json", config.choices()
    saved = read_config(config.folder) if path.exists() else now
    return all(saved.get(name) == now[name] for name in config.SAMPLING & {*now})


def facts_of(config: Config, device: torch.device) -> dict:
    """What config.json records about a run besides its choices."""
    command, revision = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], None
    if (ROOT / ".git").exists() and shutil.which("git"):
        revision = subprocess.run(command, capture_output=True).stdout.decode().strip()
    facts = {"script": config.script, "description": config.description, "family": config.family}
    facts |= {"git_revision": revision, "python": sys.version.split()[0]}
    facts |= {"processes": COUNT, "bfloat16": files.fast_bfloat16(device)}
    return facts | {"packages": {name: metadata.version(name) for name in PACKAGES}}


def read_config(folder: Path) -> dict:
    """A run's config.json. UserError if it is damaged, or of an earlier version."""
    path = folder / "config.json"
    with reading(path, "delete it; its script's command will write it again, without training"):
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        if "sampler" in config:
            raise UserError(f"{folder} was made by an earlier version; train it again (--fresh)")
        return {name: config[name] for name in ("script", "seed", "classes", "family")} | config
