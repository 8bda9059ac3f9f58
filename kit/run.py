"""A run: what it has on disk, how far it has come, and its checkpoints."""

import contextlib
import dataclasses
import json
import math
import subprocess
import sys
import textwrap
import time
import zlib
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from kit import base, processes
from kit.base import Progress, UserError, reading
from kit.captions import Captions
from kit.datasets import readable, settle_classes, typed_dataset
from kit.flags import Config, plain
from kit.images import load_dataset

MANY = 500  # texts that are worth a file
PACKAGES = "torch", "torchvision", "numpy", "pandas", "matplotlib"


class Run:
    """results/<dataset>/<script>/: what one run has on disk, and how far it has come."""

    LOG_EVERY, SAVE_EVERY = 20, 30  # steps, seconds: a kill costs at most their sum

    def __init__(self, config: Config):
        self.config = config
        self.device = base.pick_device(processes.device_name(config.device))
        processes.join(self.device)
        processes.keep_memory()
        self.batch_size = config.batch_size  # of this process; see load_data()
        self.folder = config.out / config.dataset / config.script
        self.last = self.folder / "checkpoints" / "last.pt"
        self.images, self.metrics = self.folder / "images", self.folder / "metrics"
        self.step, self.saved = 0, {}  # saved: what the checkpoint was made with
        # Float16 has so small a range that gradients are scaled up on the way.
        fp16 = self.half() is torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        self.losses = []  # of each step since the last line of loss.csv: name -> tensor
        self.encoder = None  # a script that reads text puts its own here
        self.text_vectors = {}  # what encode() has made
        self.states = torch.zeros(0, 0)  # of the training images; see kit.attributes
        self.replicas = {}  # what parallel() has made
        self.facts = {}
        self.checkpoint = processes.from_first(self.read_checkpoint)
        if self.checkpoint is not None:
            self.saved, self.step = self.checkpoint["config"], self.checkpoint["step"]
        self.check(script=config.script, dataset=config.dataset)
        if config.prompt is not None:
            self.take_over_choices()
        settle_classes(config)
        chosen = config.names("training")
        if config.prompt is not None:
            chosen.remove("seed")  # here it picks the noise
        self.check(**{name: getattr(config, name) for name in chosen}, pictures=config.pictures)
        self.clip = config.clip  # its name: that of --clip, or else of the run on disk
        if self.clip == "auto":
            self.clip = self.saved.get("text_encoder") or "auto"
        elif not Path(self.clip).expanduser().is_file():  # a file is compared when it is read
            self.check(text_encoder=self.clip)

    def read_checkpoint(self) -> dict | None:
        """UserError if it is damaged."""
        if self.config.fresh or not self.last.exists():
            return None
        with reading(self.last, "--fresh starts over"):
            checkpoint = torch.load(self.last, map_location="cpu", weights_only=True)
            missing = {"config", "step", "rng"} - set(checkpoint)
            if missing:
                raise ValueError(f"no {min(missing)} in it")
            return checkpoint

    def take_over_choices(self) -> None:
        """For --prompt: what no flag says is as in training. UserError without a training."""
        config = self.config
        if not self.saved:
            command = f"python {config.script}.py --dataset {typed_dataset(config)}"
            where = "(in a notebook: the cell under Train)"
            raise UserError(f"nothing trained at {self.last}; first: {command} {where}")
        for name in config.names("training"):
            if name in self.saved and name not in config.given and name != "seed":
                setattr(config, name, self.saved[name])
        config.pictures = self.saved.get("pictures")

    def check(self, **facts) -> None:
        """UserError if the run on disk was made with others."""
        for name, value in plain(facts).items():
            old = self.saved.get(name, value)
            if old != value:
                old, new = (textwrap.shorten(str(x), 60, placeholder=" ...") for x in (old, value))
                wrong = f"{self.last} has {name} {old}, not {new}"
                raise UserError(f"{wrong}; --fresh or another --out")

    def check_model(self, model: torch.nn.Module) -> None:
        """UserError if the run on disk was made with another network or text encoder."""
        parameters = sum(weight.numel() for weight in model.parameters())
        self.facts = {"parameters": parameters, "text_encoder": None, "text_encoder_crc32": None}
        if self.encoder is not None:
            self.facts["text_encoder"] = self.encoder.name
            self.facts["text_encoder_crc32"] = self.encoder.crc32
        self.check(**self.facts)
        processes.check_alike("text encoder (CRC-32)", self.facts["text_encoder_crc32"])

    def encode(self, texts: list[str]) -> torch.Tensor:
        """-> (n, dim) on the device, by the script's encoder; see encode_once().

        Many new ones are kept under --data-dir, if a file tells what the encoder is.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self.text_vectors]
        crc32 = getattr(self.encoder, "crc32", 0)
        if len(new) > MANY and crc32:

            def compute():
                rows = []
                for text in Progress(new, "reading captions", unit="text", leave=False):
                    rows.append(encode_once(self.encoder, [text], {}))
                return {"vectors": torch.cat(rows).numpy()}

            folder, content = self.config.data_dir / "captions", zlib.crc32("\n".join(new).encode())
            with processes.in_turn():
                vectors = base.kept(folder, f"clip_{crc32:08x}", [content], compute)["vectors"]
            self.text_vectors |= zip(new, torch.from_numpy(vectors))
        return encode_once(self.encoder, texts, self.text_vectors).to(self.device)

    def load(self, **modules) -> None:
        """Give modules (name -> module or optimiser) the state that the checkpoint has for them."""
        with reading(self.last, "--fresh starts over"):
            for name, module in modules.items():
                if name != "scaler" or name in self.checkpoint:  # which only float16 has
                    module.load_state_dict(self.checkpoint[name])

    def half(self) -> torch.dtype | None:
        """What convolutions and matrix products of training work in; None for float32.

        A GPU from 2020 on works in bfloat16 (compute capability 8), an older one in float16, a CPU
        in bfloat16 where that is fast: with AVX-512 BF16 or AMX.
        """
        if self.device.type == "cuda":
            newer = torch.cuda.get_device_capability(self.device) >= (8, 0)
            return torch.bfloat16 if newer else torch.float16
        known = getattr(torch.cpu, "get_capabilities", dict)()  # an older PyTorch does not tell
        fast = known.get("avx512_bf16") or known.get("amx_bf16")
        return torch.bfloat16 if self.device.type == "cpu" and fast else None

    def autocast(self):
        """A context where convolutions and matrix products work in half precision; see half()."""
        half = self.half()
        return torch.autocast(self.device.type, half) if half else contextlib.nullcontext()

    def parallel(self, model: torch.nn.Module):
        """-> model; under torchrun the same weights, but their gradients are made the mean of all
        processes' in backward().
        """
        if model not in self.replicas:
            self.replicas[model] = processes.parallel(model)
        return self.replicas[model]

    def load_data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """-> training images uint8 (N, 28, 28), labels int64 (N,), both on the device.

        common.to_images makes float32 in [-1, 1] of a batch. From here on config.json tells what
        the run learns from; batch_size and the images are this process's share.
        """
        self.batch_size = processes.share_of(self.config.batch_size)
        keep = slice(processes.RANK, None, processes.COUNT)  # so that more of them find room
        with processes.in_turn():
            pixels, labels, source = load_dataset(self.config, keep=keep)
        processes.check_alike("data source", source)
        (mean,) = processes.mean([len(pixels)])
        if self.config.has_text:
            self.facts["attributes"] = self.measure_attributes(pixels)
        self.begin(data_source=source, image_count=round(mean * processes.COUNT), **self.facts)
        return pixels.to(self.device), labels.to(self.device)

    def measure_attributes(self, pixels: torch.Tensor) -> dict:
        """Training images -> what is low and what is high; see kit.attributes.thresholds()."""
        from kit import attributes  # not at the top: a script without text needs no SciPy

        values = attributes.measured(self.config, pixels.numpy())
        everyone, known = processes.gather(values), self.saved.get("attributes")
        chosen = processes.from_first(
            lambda: known or attributes.thresholds(self.config, np.concatenate(everyone))
        )
        self.states = torch.from_numpy(attributes.states(self.config, values, chosen))
        return chosen

    def captions(self, labels: torch.Tensor) -> Captions:
        """The sentences that training images may be given; labels: those of load_data()."""
        states = self.states.to(self.device)
        return Captions(self.config, labels, states, self.saved["attributes"].values())

    def drawn_alike(self) -> bool:
        """Whether the samples on disk, if any, were drawn with the sampling flags of now."""
        try:
            before = read_config(self.folder)
        except UserError:
            return False
        now = {name: getattr(self.config, name) for name in self.config.names("sampling")}
        now["sampler"] = self.config.sampler
        return all(before.get(name) == value for name, value in plain(now).items())

    def begin(self, **facts) -> None:
        """Write config.json: every choice, facts about data and encoder, versions, revision."""
        self.check(**facts)
        if processes.RANK == 0:
            self.make_room()
        config, now = self.config, [*self.config.names("sampling"), "scales", "sampler"]
        self.saved = plain(dataclasses.asdict(config)) | {
            "script": config.script,
            "description": config.description,
            "family": config.family,
            "sampler": config.sampler,
            "has_text": config.has_text,
            "has_guidance": config.has_guidance,
            "device": str(self.device),
            "pictures": config.pictures,
            "processes": processes.COUNT,
            "autocast": str(None if config.family == "GAN" else self.half()),
            "git_revision": git_revision(),
            "python": sys.version.split()[0],
            "packages": {name: metadata.version(name) for name in PACKAGES},
            **facts,
            **{name: value for name, value in self.saved.items() if name not in now},
        }
        if processes.RANK == 0:
            base.save_text(self.folder / "config.json", json.dumps(self.saved, indent=2))

    def make_room(self) -> None:
        """Move an earlier run aside; delete samples that other flags have drawn."""
        if not self.step and (self.last.exists() or self.images.exists()):
            aside = self.folder.with_name(f".{self.folder.name}_{time.time():.0f}")
            with base.writing(aside):
                self.folder.rename(aside)
            print(f"the earlier run is now in {aside}", file=sys.stderr)
        if self.folder.exists() and not self.drawn_alike():
            for path in [*self.images.glob("samples*"), self.metrics / "performance.csv"]:
                path.unlink(missing_ok=True)

    def steps(self, **modules):
        """Yield the number of each step still to do, from 0.

        In between write loss.csv, and the checkpoint of modules (name -> module or optimiser).
        """
        total, batch, rows = self.config.train_steps, self.config.batch_size, []
        if self.scaler.is_enabled():
            modules["scaler"] = self.scaler
        if self.step:
            print(f"{self.folder}: going on from step {self.step} of {total}", file=sys.stderr)
            self.load(**modules)
            rows = self.earlier_losses() if processes.RANK == 0 else []
        self.restore_rng()
        saved = start = time.perf_counter()
        with Progress(desc="training", total=total * batch, initial=self.step * batch) as bar:
            while self.step < total:
                yield self.step
                self.step += 1
                seconds = time.perf_counter() - start
                alone = processes.COUNT == 1  # several must do this at the same step
                if self.step % self.LOG_EVERY and self.step < total and (seconds < 30 or not alone):
                    continue
                due = time.perf_counter() - saved > self.SAVE_EVERY or self.step == total
                row, due = self.loss_row(due)  # waits for the device, so the time is taken after it
                images, seconds = len(self.losses) * batch, time.perf_counter() - start
                rows.append(row | {"images_per_second": f"{images / seconds:.4g}"})
                bar.update(images)
                if due:
                    self.save_checkpoint(modules, rows)
                    saved = time.perf_counter()
                self.losses, start = [], time.perf_counter()
                bar.set_postfix(list(rows[-1].items())[1:-1], refresh=False)

    def loss_row(self, due: bool) -> tuple[dict, bool]:
        """-> the means of the losses since the last row, whether the first process finds a
        checkpoint due. UserError if a loss is no number any more.
        """
        names = [*self.losses[0]]
        means = [torch.stack([step[name] for step in self.losses]).mean().item() for name in names]
        first_finds = float(due) if processes.RANK == 0 else 0.0
        *means, first_finds = processes.mean([*means, first_finds])
        row = {"step": self.step}
        for name, mean in zip(names, means):
            if not math.isfinite(mean):
                slower = f"--fresh with --lr {self.config.lr / 3:g}"
                raise UserError(f"{name} is {mean} at step {self.step}; try {slower}")
            row[name] = f"{mean:.6f}"
        return row, first_finds > 0

    def earlier_losses(self) -> list[dict]:
        """The rows of loss.csv up to the checkpoint, as they were written."""
        path, remedy = self.metrics / "loss.csv", "delete it: only the curve so far is lost"
        if not path.exists():
            return []
        table = base.read_table(path, ("step", "images_per_second"), remedy, dtype=str)
        with reading(path, remedy):
            return table[table["step"].astype(int) <= self.step].to_dict("records")

    def save_checkpoint(self, modules: dict, rows: list[dict]) -> None:
        """last.pt, and loss.csv up to it. All processes give their random states."""
        states = processes.gather(random_states(self.device))
        if processes.RANK > 0:
            return
        base.save_table(self.metrics / "loss.csv", rows)
        state = {name: module.state_dict() for name, module in modules.items()}
        state |= {"step": self.step, "config": self.saved, "rng": states}
        base.save_file(self.last, lambda file: torch.save(state, file))

    def restore_rng(self) -> None:
        """Go on with this process's random states, or with new ones if the checkpoint has none."""
        if not self.step and processes.RANK == 0:
            return  # main() has seeded it
        torch.manual_seed(processes.own_seed(self.config.seed, self.step))
        if self.step:
            with reading(self.last, "--fresh starts over"):
                states = self.checkpoint["rng"]
                if "random" in states:  # as a checkpoint of an earlier version has it
                    states = [{"cpu": states["random"], **states}]
                for state in states[processes.RANK :][:1]:
                    set_random_states(self.device, state)


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Of the CPU, and of the device in use if it is another."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = generators(device).get_rng_state(*which(device))
    return states


def set_random_states(device: torch.device, states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type in states and device.type != "cpu":  # it may have begun on another device
        generators(device).set_rng_state(states[device.type], *which(device))


def generators(device: torch.device):
    return getattr(torch, device.type)  # torch.cuda, torch.mps, torch.xpu


def which(device: torch.device) -> list[torch.device]:
    return [] if device.type == "mps" else [device]  # there is one, and it takes no argument


def encode_once(encoder, texts: list[str], known: dict[str, torch.Tensor]) -> torch.Tensor:
    """-> (n, dim). known, text -> vector, is filled in.

    Each text is encoded by itself: so its vector depends on nothing else, also when rounded.
    """
    for text in texts:
        if text not in known:
            known[text] = encoder.encode_text([readable(text)])[0].cpu()
    return torch.stack([known[text] for text in texts])


def git_revision() -> str | None:
    """Of the scripts' own repository, if they are in one."""
    command = ["git", "-C", str(base.ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def read_config(folder: Path) -> dict:
    """A run's config.json; UserError if it is missing or damaged."""
    path = folder / "config.json"
    with reading(path, "run its script again"):
        config = json.loads(path.read_text(encoding="utf-8"))
        return {"classes": config["classes"], "seed": config["seed"], **config}
