"""The choices of a script: a dataclass whose fields are flags, with their comments as help."""

import contextlib
import io
import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

from kit import words
from kit.files import ROOT, UserError, load_tensors, reading

RETRAIN = "copy the file back from a backup, or train again with --fresh"
COUNTS = {"train_steps", "batch_size", "sample_steps", "samples", "n", "per_class"}


@dataclass
class DataConfig:
    """The data to learn. script: the file that defines the class; description: its first line."""

    dataset: str = "mnist"  # mnist, emnist, quickdraw, or a folder with a subfolder for each class
    emnist_split: Literal["letters", "balanced", "byclass", "digits"] = "letters"  # part of EMNIST
    classes: tuple[str, ...] = ()  # QuickDraw's, such as cat rainbow train; if not given, ten
    per_class: int = 5000  # drawings of each QuickDraw class
    data_dir: Path = Path("data")  # where data sets and caches are kept

    def __init_subclass__(cls):
        module = sys.modules[cls.__module__]
        cls.script = Path(getattr(module, "__file__", "notebook.py")).stem
        cls.description = (module.__doc__ or "").strip().split("\n")[0]

    def __post_init__(self):
        """Expand ~, set name and classes. UserError for choices that would silently do harm."""
        for name, value in list(vars(self).items()):
            if isinstance(value, str | Path):
                setattr(self, name, type(value)(os.path.expanduser(value)))
            for number in value if isinstance(value, tuple) else [value]:
                if isinstance(number, int | float) and not (name in COUNTS) <= number < math.inf:
                    wanted = "at least 1" if name in COUNTS else "finite and not negative"
                    raise UserError(f"--{name.replace('_', '-')} {number}: it must be {wanted}")
        folder = Path(self.dataset).resolve()
        self.name = self.dataset if self.dataset in words.DATASETS else folder.name
        for path in (self.data_dir, getattr(self, "out", None) or self.data_dir):
            if self.dataset not in words.DATASETS and path.resolve().is_relative_to(folder):
                raise UserError(f"{path} is inside the folder of pictures; choose another one")
        if self.dataset != self.name and self.name in words.DATASETS:
            raise UserError(f"--dataset {folder}: rename the folder, since {self.name} is taken")
        names = words.class_names(self)
        if self.classes and tuple(self.classes) != names:
            raise UserError(f"--classes: the classes of {self.dataset} are {', '.join(names)}")
        self.classes = names

    @classmethod
    def parse(cls, argv: list[str] | None = None, **default):
        """argv, or None for the command line -> the choices. UserError for wrong flags."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # never fail to print a character
        if argv is None and "kernel_launcher" in sys.argv[0]:  # those are Jupyter's arguments
            argv = []
        about = {"prog": f"{cls.script}.py", "description": cls.description}
        try:
            with contextlib.redirect_stderr(io.StringIO()) as message:
                return tyro.cli(cls, args=argv, **about, **default)
        except SystemExit as stop:
            if isinstance(stop, UserError) or not stop.code:
                raise
            box = message.getvalue().partition("│ ──")[0].splitlines()[1:]
            text = " ".join(line.strip("│ ") for line in box)
            raise UserError(f"{text.rstrip('.')}; {cls.script}.py --help lists the flags") from None


@dataclass
class Config(DataConfig):
    """The choices that all scripts share; each script adds its own."""

    out: Path = Path("results")  # the folder of all runs
    fresh: bool = False  # start over; the earlier run is moved aside
    seed: int = 0  # of training, and of the noise that images are generated from
    device: str = "auto"  # cpu, cuda, cuda:1, mps, or auto: a CUDA GPU if there is one
    samples: int = 2000  # images to generate for evaluation, at each guidance scale

    # Choices that may change for a trained run; after SAMPLING ones its samples are outdated.
    SAMPLING = {"samples", "sample_steps", "eta", "interval", "scales", "temperature"}
    FREE = {"dataset", "data_dir", "out", "fresh", "device", "prompt", "n", "scale", "clip"}
    # Values for scripts without these flags.
    prompt, n, clip, scale, scales, interval, sample_steps = None, 16, "auto", 1.0, (1.0,), None, 1
    family = "diffusion"
    film = "above x_t, from noise to image; below x0_hat"  # denoising.png

    def __post_init__(self):
        super().__post_init__()
        self.folder = self.out / self.name / self.script
        self.checkpoint = self.folder / "checkpoints" / "last.pt"
        odd = any(width % 8 for width in getattr(self, "widths", ()))
        if odd or not self.scales or (self.interval and self.interval[0] > self.interval[1]):
            raise UserError("--widths: multiples of 8; --scales: any; --interval: lower t first")
        if self.prompt is not None:
            self.prompt = words.readable(self.prompt)
            if not self.prompt.strip() or not self.prompt.isprintable():
                raise UserError('--prompt: it needs readable text, such as "a thick seven"')
            embedded = ROOT / "assets" / f"{self.script}_{self.name}.pt"
            if embedded.exists() and self.out == Path("results") and not self.checkpoint.exists():
                self.checkpoint = embedded

    def has(self, field: str) -> bool:
        """Whether the script has a flag: "prompt" if it reads text, "scales" if it has guidance."""
        return field in self.__dataclass_fields__

    def choices(self) -> dict:
        """All fields, converted to JSON types."""
        return json.loads(json.dumps(asdict(self), default=str))

    @classmethod
    def parse(cls, argv: list[str] | None = None):
        """As above; with --prompt, flags not given default to the choices of the trained run."""
        config = super().parse(argv)
        if config.prompt is None or not config.checkpoint.exists():
            return config
        with reading(config.checkpoint, RETRAIN):
            trained = load_tensors(config.checkpoint)["config"]
        names = cls.__dataclass_fields__.keys() & trained.keys() - cls.FREE - {"seed"}
        known = {"dataset": config.dataset, "prompt": config.prompt}
        for name in names:
            known[name] = tuple(trained[name]) if isinstance(trained[name], list) else trained[name]
        return super().parse(argv, default=cls(**known))
