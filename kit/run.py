"""A run: what it has on disk, how far it has come, and its checkpoints."""

import contextlib
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import time
import zlib
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from kit import base, locks, processes
from kit.base import Progress, UserError, load_tensors, not_finite, reading, say
from kit.captions import Captions
from kit.datasets import DIGITS, readable, settle_classes, typed_dataset
from kit.flags import Config, plain
from kit.images import load_dataset

ANY_CLIP = "auto", "tiny"  # which the shipped weights' encoder fits
MANY = 500  # texts that are worth a file
BAD_CHECKPOINT = "put a copy of it there, or train anew with --fresh, which moves the run aside"
PACKAGES = "torch", "torchvision", "numpy", "pandas", "matplotlib"


def shipped_weights(config: Config) -> Path:
    """Where weights of this script and data set lie that come with the repository, if any do."""
    return base.ROOT / "assets" / f"{config.script}_{config.dataset}.pt"


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
        with base.writing(self.folder):
            self.taken, self.last_changed = False, changed(self.last)  # see take()
        self.shipped = processes.from_first(self.ask_for_shipped)
        if self.shipped:  # pictures go beside the folder, where a training has room
            self.last, self.images = shipped_weights(config), self.folder.with_name("shipped")
            self.last_changed = changed(self.last)
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
            self.clip = self.clip_of_training()
        elif not os.path.isfile(base.expanded(self.clip)):  # a file is compared when it is read
            self.check(text_encoder=self.clip)

    def ask_for_shipped(self) -> bool:
        """Whether a prompt is drawn with the weights that come with the repository: there is no
        run on disk, and no flag asks for another one than theirs.
        """
        config = self.config
        other = config.given & {"out", *config.names("training")} - {"dataset", "seed"}
        if config.prompt is None or self.last_changed or other or config.clip not in ANY_CLIP:
            return False
        return shipped_weights(config).exists()

    def read_checkpoint(self) -> dict | None:
        """UserError if it is damaged."""
        if self.config.fresh or self.last_changed is None:
            return None
        with reading(self.last, BAD_CHECKPOINT):
            checkpoint = load_tensors(self.last)
            if not isinstance(checkpoint, dict):
                raise ValueError(f"a {type(checkpoint).__name__}, no checkpoint of a run")
            known = {"config": dict, "step": int, "rng": (list, dict)}
            for name, kind in known.items():
                if not isinstance(checkpoint[name], kind):
                    raise ValueError(f"its {name} is a {type(checkpoint[name]).__name__}")
            needed = "script", "dataset", "train_steps", "parameters"
            check_types(checkpoint["config"], *needed)
            if not 0 <= checkpoint["step"] <= checkpoint["config"]["train_steps"]:
                raise ValueError(f"its step is {checkpoint['step']}")
            return checkpoint

    def take_over_choices(self) -> None:
        """For --prompt: what no flag says is as in training. UserError without a training."""
        config = self.config
        if not self.saved:
            raise self.nothing_trained()
        for name in config.names("training"):
            if name in self.saved and name not in config.given and name != "seed":
                setattr(config, name, self.saved[name])
        config.pictures = self.saved.get("pictures")

    def nothing_trained(self) -> UserError:
        command = f"python {self.config.script}.py --dataset {typed_dataset(self.config)}"
        where = "(in a notebook: the cell under Train)"
        last = self.folder / "checkpoints" / "last.pt"
        return UserError(f"nothing trained at {last}; first: {command} {where}")

    def clip_of_training(self) -> str:
        """The name of the run's text encoder; of a file, where it lies now. UserError if gone."""
        known = self.saved.get("text_encoder") or "auto"
        found = clip_now(known, self.config)
        if not found:
            wrong = f"{self.folder} was trained with --clip {known}, which is gone"
            raise UserError(f"{wrong}; say where it is now: --clip FILE")
        return found

    def check(self, **facts) -> None:
        """UserError if the run on disk was made with others."""
        crc32 = facts.get("text_encoder_crc32")
        if crc32 and crc32 == self.saved.get("text_encoder_crc32"):
            facts.pop("text_encoder", None)  # the same file at another place
        for name, value in plain(facts).items():
            old = self.saved.get(name, value)
            if old != value:
                if self.shipped:  # the script has been changed: theirs are not its weights
                    raise self.nothing_trained()
                old, new = (textwrap.shorten(str(x), 60, placeholder=" ...") for x in (old, value))
                wrong = f"{self.last} has {name} {old}, not {new}"
                how = "the same flags go on, another --out keeps both (or --fresh)"
                if name == "text_encoder_crc32":
                    how = "--clip FILE with the one that it was trained with goes on"
                raise UserError(f"{wrong}; {how}")

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
        with reading(self.last, BAD_CHECKPOINT):
            for name, module in modules.items():
                if name == "scaler" and name not in self.checkpoint:  # which only float16 has
                    continue
                state = self.checkpoint[name]
                bad = not_finite(state)
                if bad:
                    raise ValueError(f"{name}.{bad} holds numbers that are none")
                try:
                    module.load_state_dict(state)
                except RuntimeError as error:  # a line for each weight
                    lines = str(error).split("\n")
                    raise ValueError(f"{name}: {lines[min(1, len(lines) - 1)].strip()}") from None

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
            self.take()
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

    def take(self) -> None:
        """Have the run's folder for this process alone. UserError if another one has it."""
        with base.writing(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        if not locks.hold(self.folder):
            by = locks.holder(self.folder)
            raise UserError(f"{by} is at work on {self.folder}; wait for it, or use another --out")
        if not self.taken and self.last_changed != changed(self.last):
            locks.release(self.folder)
            raise UserError(f"another process has just gone on with {self.folder}; "
                            "give the command again")  # fmt: skip
        self.taken = True

    def finish(self) -> None:
        """Let others have the run's folder."""
        if processes.RANK == 0:
            locks.release(self.folder)

    def make_room(self) -> None:
        """Move an earlier run aside; delete samples that other flags have drawn."""
        if not self.step and (self.last.exists() or self.images.exists()):
            aside = self.folder.with_name(f".{self.folder.name}_{time.time():.2f}")
            with base.writing(aside):
                self.folder.rename(aside)
            say(f"the earlier run is now in {aside}")
        if self.folder.exists() and not self.drawn_alike():
            drawn = [path for path in self.images.glob("samples_*") if is_sample_file(path)]
            with base.writing(self.folder):
                drawn += [self.images / "film.npz", self.metrics / "performance.csv"]
                for path in drawn:
                    path.unlink(missing_ok=True)

    def steps(self, **modules):
        """Yield the number of each step still to do, from 0.

        In between write loss.csv, and the checkpoint of modules (name -> module or optimiser).
        Asked to end, by Ctrl-C or SIGTERM, it finishes the step and writes both.
        """
        total, batch, rows = self.config.train_steps, self.config.batch_size, []
        if self.scaler.is_enabled():
            modules["scaler"] = self.scaler
        if self.step:
            say(f"{self.folder}: going on from step {self.step} of {total}")
            self.load(**modules)
            rows = self.earlier_losses() if processes.RANK == 0 else []
        self.restore_rng()
        saved = start = time.perf_counter()
        bar = Progress(desc="training", total=total * batch, initial=self.step * batch)
        alone = processes.COUNT == 1  # several must do this at the same step
        with bar, base.noted(patient=not alone) as signals:
            while self.step < total:
                yield self.step
                self.step += 1
                seconds = time.perf_counter() - start
                asked = seconds > 30 or signals
                if self.step % self.LOG_EVERY and self.step < total and not (alone and asked):
                    continue
                due = time.perf_counter() - saved > self.SAVE_EVERY or self.step == total
                row, due, ending = self.loss_row(due, bool(signals))  # waits for the device
                images, seconds = len(self.losses) * batch, time.perf_counter() - start
                rows.append(row | {"images_per_second": f"{images / seconds:.4g}"})
                bar.update(images)
                if due or ending:
                    self.save_checkpoint(modules, rows)
                    saved = time.perf_counter()
                if ending or (alone and signals):  # it may have come while this was saved
                    bar.close()
                    say(f"{self.folder}: saved at step {self.step} of {total}")
                    base.raise_terminated((*signals, base.signal.SIGINT)[0])
                self.losses, start = [], time.perf_counter()
                bar.set_postfix(list(rows[-1].items())[1:-1], refresh=False)

    def loss_row(self, due: bool, ending: bool) -> tuple[dict, bool, bool]:
        """-> the means of the losses since the last row, whether the first process finds a
        checkpoint due, whether any shall end. UserError if a loss is no number any more.
        """
        names = [*self.losses[0]]
        means = [torch.stack([step[name] for step in self.losses]).mean().item() for name in names]
        first_finds = float(due) if processes.RANK == 0 else 0.0
        *means, first_finds, one_ends = processes.mean([*means, first_finds, float(ending)])
        row = {"step": self.step}
        for name, mean in zip(names, means):
            if not math.isfinite(mean):
                self.diverged(f"{name} is {mean}")
            row[name] = f"{mean:.6f}"
        return row, first_finds > 0, one_ends > 0

    def diverged(self, what: str) -> None:
        """UserError with a remedy."""
        slower = f"--fresh with --lr {self.config.lr / 3:g}"
        kept = f" (the last good checkpoint stays at {self.last})" if self.last.exists() else ""
        raise UserError(f"{what} at step {self.step}; try {slower}{kept}")

    def earlier_losses(self) -> list[dict]:
        """The rows of loss.csv up to the checkpoint, as they were written."""
        path, remedy = self.metrics / "loss.csv", "delete it: only the curve so far is lost"
        if not path.exists():
            say(f"{path} is missing: the curve begins anew at step {self.step}")
            return []
        table = base.read_table(path, ("step", "images_per_second"), remedy, dtype=str)
        with reading(path, remedy):
            numbers = [name for name in table if "loss" in name or "per_second" in name]
            for name in numbers:  # of a spreadsheet
                table[name] = table[name].str.replace(",", ".")
            steps = table[["step", *numbers]].astype(float)["step"]
            table["step"] = steps.astype(int).astype(str)
            if (steps.diff()[1:] <= 0).any():
                raise ValueError("its steps do not rise")
            return table[steps <= self.step].to_dict("records")

    def save_checkpoint(self, modules: dict, rows: list[dict]) -> None:
        """last.pt, and loss.csv up to it. All processes give their random states.

        UserError if a weight is no number any more: then the earlier one stays.
        """
        states = processes.gather(random_states(self.device))
        if processes.RANK > 0:
            return
        state = {name: module.state_dict() for name, module in modules.items()}
        bad = not_finite(state)
        if bad:
            self.diverged(f"{bad} holds numbers that are none")
        base.save_table(self.metrics / "loss.csv", rows)
        state |= {"step": self.step, "config": self.saved, "rng": states}
        base.save_file(self.last, lambda file: torch.save(state, file))

    def restore_rng(self) -> None:
        """Go on with this process's random states, or with new ones if the checkpoint has none."""
        if not self.step and processes.RANK == 0:
            return  # main() has seeded it
        torch.manual_seed(processes.own_seed(self.config.seed, self.step))
        if self.step:
            with reading(self.last, BAD_CHECKPOINT):
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


def without_folder(known: str) -> str:
    """Of a CLIP's file its name, for it may have moved; a model's name as it is."""
    is_path = Path(known).is_absolute() or "\\" in known  # not ViT-B/32
    return re.split(r"[\\/]", known)[-1] if is_path else known


def clip_now(known: str, config) -> str:
    """known: the name of a CLIP, or where its file was -> the same, or where it is now, or ""."""
    name = without_folder(known)
    if name == known:
        return known
    folders = config.out, config.out.parent, config.data_dir, base.ROOT
    places = [Path(known), *(folder / name for folder in folders)]
    return next((str(place) for place in places if place.is_file()), "")


def changed(path: Path) -> tuple | None:
    """Something that differs once a file is another one; None if there is none."""
    try:
        facts = path.stat()
        return facts.st_ino, facts.st_size, facts.st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None


def git_revision() -> str | None:
    """Of the scripts' own repository, if they are in one; of no other one around it."""
    if not (base.ROOT / ".git").exists():
        return None
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env["GIT_CEILING_DIRECTORIES"] = str(base.ROOT.parent)
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(base.ROOT)]
    options = {"capture_output": True, "check": True, "timeout": 10, "env": env}
    try:
        done = subprocess.run([*command, "describe", "--always", "--dirty"], **options)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return done.stdout.decode("utf-8", "replace").strip()[:80] or None


NUMBER, TEXT = (int, float), (str, type(None))
KINDS = {  # what config.json holds, as far as others rely on it
    "script": str, "dataset": str, "train_steps": int, "seed": int, "classes": list,
    "batch_size": int, "parameters": int, "image_count": int, "sample_steps": int, "eta": NUMBER,
    "contrast": NUMBER, "scale": NUMBER, "family": str, "description": str, "data_source": str,
    "text_encoder": TEXT, "text_encoder_crc32": (int, type(None)), "attributes": dict,
    "interval": (list, type(None)), "has_text": bool, "has_guidance": bool, "sampler": TEXT,
    "lr": NUMBER, "pictures": (int, type(None)), "per_class": (int, type(None)),
    "emnist_split": TEXT, "widths": list,
}  # fmt: skip


def check_types(config: dict, *needed: str) -> None:
    """KeyError, ValueError for a config.json in which something is missing or of another type."""
    for name in ("classes", "seed", *needed):
        config[name]
    for name, kind in KINDS.items():
        value = config.get(name)
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if name in config and wrong:
            raise ValueError(f"{name} is {str(value)[:40]!r}")
    classes, interval = config["classes"], config.get("interval")
    if not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes are {str(classes)[:40]}")
    if config.get("dataset") == "mnist" and classes != DIGITS:
        raise ValueError(f"classes are {str(classes)[:40]}, not MNIST's")
    if interval is not None and len(interval) != 2:
        raise ValueError(f"interval is {interval}")
    for name, words in config.get("attributes", {}).items():
        values = [*words.values()] if isinstance(words, dict) else []
        if len(values) != 2 or not all(isinstance(value, NUMBER) for value in values):
            raise ValueError(f"the attribute {name} is {str(words)[:40]}")


def read_config(folder: Path) -> dict:
    """A run's config.json; UserError if it is missing or damaged."""
    path = folder / "config.json"
    with reading(path, "give its script's command again, which mends it and trains nothing"):
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        check_types(config)
        return config


# ── Its sample files, by name ──

SCALE = r"\d+(?:\.\d+)?(?:e-?\d+)?"  # as Python writes a number
SAMPLE_FILE = re.compile(rf"samples(_heldout|_attributes)?_w({SCALE})(_throughout)?\.npz")


def is_sample_file(path: Path) -> bool:
    return bool(SAMPLE_FILE.fullmatch(path.name))


def sample_files_in(folder: Path, kind: str = "") -> list[Path]:
    """kind: "", "heldout" or "attributes" -> a run's files of it, by name.

    What is not named as a script names it, such as a browser's "samples_w1.0 (1).npz", is left out
    with a line.
    """
    found = []
    for path in sorted((folder / "images").glob("samples*.npz")):
        name = SAMPLE_FILE.fullmatch(path.name) if path.is_file() else None
        if name is None and not kind:
            base.say_once(f"left out: {path}, which no script has named so")
        elif name and (name[1] or "").strip("_") == kind:
            found.append(path)
    return found
