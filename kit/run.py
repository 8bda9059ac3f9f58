"""A run: what it has on disk, how far it has come, and its checkpoints."""

import dataclasses
import json
import math
import subprocess
import sys
import textwrap
import time
from importlib import metadata
from pathlib import Path

import torch

from kit import base
from kit.base import Progress, UserError, reading
from kit.datasets import settle_classes
from kit.flags import Config, plain
from kit.images import load_dataset

PACKAGES = "torch", "torchvision", "numpy", "pandas", "matplotlib"


class Run:
    """results/<dataset>/<script>/: what one run has on disk, and how far it has come."""

    LOG_EVERY, SAVE_EVERY = 20, 30  # steps, seconds: a kill costs at most their sum

    def __init__(self, config: Config):
        self.config, self.device = config, base.pick_device(config.device)
        self.folder = config.out / config.dataset / config.script
        self.last = self.folder / "checkpoints" / "last.pt"
        self.images, self.metrics = self.folder / "images", self.folder / "metrics"
        self.step, self.saved = 0, {}  # saved: what the checkpoint was made with
        self.losses = []  # of each step since the last line of loss.csv: name -> tensor
        self.encoder = None  # a script that reads text puts its own here
        self.text_vectors = {}  # what encode() has made
        self.facts = {}
        if self.last.exists() and not config.fresh:
            with reading(self.last, "--fresh starts over"):
                self.checkpoint = torch.load(self.last, map_location="cpu", weights_only=True)
                self.saved, self.step = self.checkpoint["config"], self.checkpoint["step"]
        self.check(script=config.script, dataset=config.dataset)
        if config.prompt is not None:
            self.take_over_choices()
        settle_classes(config)
        chosen = config.names("training")
        if config.prompt is not None:
            chosen.remove("seed")  # here it picks the noise
        self.check(**{name: getattr(config, name) for name in chosen})
        self.clip = config.clip  # its name: that of --clip, or else of the run on disk
        if self.clip == "auto":
            self.clip = self.saved.get("text_encoder") or "auto"
        elif not Path(self.clip).expanduser().is_file():  # a file is compared when it is read
            self.check(text_encoder=self.clip)

    def take_over_choices(self) -> None:
        """For --prompt: what no flag says is as in training. UserError without a training."""
        config = self.config
        if not self.saved:
            command = f"python {config.script}.py --dataset {config.dataset}"
            where = "(in a notebook: the cell under Train)"
            raise UserError(f"nothing trained at {self.last}; first: {command} {where}")
        for name in config.names("training"):
            if name in self.saved and name not in config.given and name != "seed":
                setattr(config, name, self.saved[name])

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

    def encode(self, texts: list[str]) -> torch.Tensor:
        """-> (n, dim) on the device, by the script's encoder; see encode_once()."""
        return encode_once(self.encoder, texts, self.text_vectors).to(self.device)

    def load(self, **modules) -> None:
        """Give modules (name -> module or optimiser) the state that the checkpoint has for them."""
        with reading(self.last, "--fresh starts over"):
            for name, module in modules.items():
                module.load_state_dict(self.checkpoint[name])

    def autocast(self):
        """A context in which convolutions and matrix products work in bfloat16.

        On a CPU whose own bfloat16 is fast (AVX-512 BF16 or AMX); elsewhere it changes nothing.
        """
        known = getattr(torch.cpu, "get_capabilities", dict)()  # an older PyTorch does not tell
        fast = known.get("avx512_bf16") or known.get("amx_bf16")
        return torch.autocast("cpu", torch.bfloat16, self.device.type == "cpu" and bool(fast))

    def load_data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """-> training images uint8 (N, 28, 28), labels int64 (N,), both on the device.

        common.to_images makes float32 in [-1, 1] of a batch. From here on config.json tells what
        the run learns from.
        """
        pixels, labels, source = load_dataset(self.config)
        self.begin(data_source=source, image_count=len(pixels), **self.facts)
        return pixels.to(self.device), labels.to(self.device)

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
        if not self.step and (self.last.exists() or self.images.exists()):
            aside = self.folder.with_name(f".{self.folder.name}_{time.time():.0f}")
            with base.writing(aside):
                self.folder.rename(aside)
            print(f"the earlier run is now in {aside}", file=sys.stderr)
        if self.folder.exists() and not self.drawn_alike():
            for path in [*self.images.glob("samples*"), self.metrics / "performance.csv"]:
                path.unlink(missing_ok=True)
        config, now = self.config, [*self.config.names("sampling"), "scales", "sampler"]
        self.saved = plain(dataclasses.asdict(config)) | {
            "script": config.script,
            "description": config.description,
            "family": config.family,
            "sampler": config.sampler,
            "has_text": config.has_text,
            "has_guidance": config.has_guidance,
            "device": str(self.device),
            "git_revision": git_revision(),
            "python": sys.version.split()[0],
            "packages": {name: metadata.version(name) for name in PACKAGES},
            **facts,
            **{name: value for name, value in self.saved.items() if name not in now},
        }
        base.save_text(self.folder / "config.json", json.dumps(self.saved, indent=2))

    def steps(self, **modules):
        """Yield the number of each step still to do, from 0.

        In between write loss.csv, and the checkpoint of modules (name -> module or optimiser).
        """
        total, batch, rows = self.config.train_steps, self.config.batch_size, []
        if self.step:
            print(f"{self.folder}: going on from step {self.step} of {total}", file=sys.stderr)
            self.load(**modules)
            self.restore_rng()
            rows = self.earlier_losses()
        bar = Progress(desc="training", total=total * batch, initial=self.step * batch)
        saved = start = time.perf_counter()
        while self.step < total:
            yield self.step
            self.step += 1
            seconds = time.perf_counter() - start
            if self.step % self.LOG_EVERY and self.step < total and seconds < 30:
                continue
            rows.append(self.loss_row())  # waits for the device, so the time is taken after it
            images, seconds = len(self.losses) * batch, time.perf_counter() - start
            rows[-1]["images_per_second"] = f"{images / seconds:.4g}"
            bar.update(images)
            if time.perf_counter() - saved > self.SAVE_EVERY or self.step == total:
                base.save_table(self.metrics / "loss.csv", rows)
                self.save_checkpoint(modules)
                saved = time.perf_counter()
            self.losses, start = [], time.perf_counter()
            bar.set_postfix(list(rows[-1].items())[1:-1], refresh=False)
        bar.close()

    def loss_row(self) -> dict:
        """The mean of each loss since the last row. UserError if one is no number any more."""
        row = {"step": self.step}
        for name in self.losses[0]:
            mean = torch.stack([losses[name] for losses in self.losses]).mean().item()
            if not math.isfinite(mean):
                slower = f"--fresh with --lr {self.config.lr / 3:g}"
                raise UserError(f"{name} is {mean} at step {self.step}; try {slower}")
            row[name] = f"{mean:.6f}"
        return row

    def earlier_losses(self) -> list[dict]:
        """The rows of loss.csv up to the checkpoint, as they were written."""
        path, remedy = self.metrics / "loss.csv", "delete it: only the curve so far is lost"
        if not path.exists():
            return []
        table = base.read_table(path, ("step", "images_per_second"), remedy, dtype=str)
        with reading(path, remedy):
            return table[table["step"].astype(int) <= self.step].to_dict("records")

    def save_checkpoint(self, modules: dict) -> None:
        state = {name: module.state_dict() for name, module in modules.items()}
        state |= {"step": self.step, "config": self.saved, "rng": {"random": torch.get_rng_state()}}
        if torch.cuda.is_available():
            state["rng"]["cuda"] = torch.cuda.get_rng_state()
        base.save_file(self.last, lambda file: torch.save(state, file))

    def restore_rng(self) -> None:
        with reading(self.last, "--fresh starts over"):
            torch.set_rng_state(self.checkpoint["rng"]["random"])
            if torch.cuda.is_available() and "cuda" in self.checkpoint["rng"]:
                torch.cuda.set_rng_state(self.checkpoint["rng"]["cuda"])


def encode_once(encoder, texts: list[str], known: dict[str, torch.Tensor]) -> torch.Tensor:
    """-> (n, dim). known, text -> vector, is filled in.

    Each text is encoded by itself: so its vector depends on nothing else, also when rounded.
    """
    for text in texts:
        if text not in known:
            known[text] = encoder.encode_text([text])[0]
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
