"""The choices of a script: a dataclass whose fields are flags and whose comments are their help."""

import contextlib
import dataclasses
import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from kit.files import ROOT, UserError, load_tensors, reading, say
from kit.words import DATASETS, class_names, readable

RETRAIN = "copy the file back from a backup, or train again with --fresh"
AT_LEAST_ONE = {"train_steps", "batch_size", "sample_steps", "samples", "n", "per_class"}


@dataclass
class DataConfig:
    """What is learned."""

    dataset: str = "mnist"  # mnist, emnist, quickdraw, or a folder with a subfolder for each class
    emnist_split: Literal["letters", "balanced", "byclass", "digits"] = "letters"  # part of EMNIST
    classes: tuple[str, ...] = ()  # of QuickDraw, such as cat rainbow train; none: ten of them
    per_class: int = 5000  # of QuickDraw: drawings of each class
    data_dir: Path = Path("data")  # where data sets and caches are kept

    def __post_init__(self):
        """UserError for choices that would silently do harm."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path):
                setattr(self, field.name, value.expanduser())
            for number in value if isinstance(value, tuple) else [value]:
                flag = f"--{field.name.replace('_', '-')} {number}"
                if isinstance(number, int | float) and not 0 <= number < math.inf:
                    raise UserError(f"{flag}: it must be finite and not negative")
                if field.name in AT_LEAST_ONE and number < 1:
                    raise UserError(f"{flag}: it must be at least 1")
        folder = Path(self.dataset).expanduser().resolve()
        self.name = self.dataset if self.dataset in DATASETS else folder.name
        if self.dataset not in DATASETS:
            if self.name in DATASETS:
                raise UserError(f"--dataset {folder}: rename the folder, {self.name} is taken")
            for path in (self.data_dir, getattr(self, "out", self.data_dir)):
                if folder in (path.resolve(), *path.resolve().parents):
                    raise UserError(f"{path} is inside the folder of pictures; choose another one")
        names = class_names(self)
        if self.classes and tuple(self.classes) != names:
            raise UserError(f"--classes: the classes of {self.dataset} are {', '.join(names)}")
        self.classes = names

    @classmethod
    def parse(cls, argv: list[str] | None = None, **default):
        """Flags argv, or those of the command line -> choices. UserError for wrong flags."""
        prepare_terminal()
        if argv is None and "kernel_launcher" in sys.argv[0]:  # the arguments of a notebook
            argv = []
        module, message = sys.modules[cls.__module__], io.StringIO()
        name = Path(getattr(module, "__file__", "notebook.py")).name
        title = (module.__doc__ or "").strip().split("\n")[0]
        try:
            with contextlib.redirect_stderr(message):
                return tyro.cli(cls, prog=name, description=title, args=argv, **default)
        except SystemExit as stop:
            if isinstance(stop, UserError) or not stop.code:
                raise
            box = message.getvalue().partition("│ ──")[0].splitlines()[1:]
            text = " ".join(line.strip("│ ") for line in box)
            raise UserError(f"{text}; {name} --help lists the flags") from None


@dataclass
class Config(DataConfig):
    """The choices that all scripts share; each script adds its own."""

    out: Path = Path("results")  # where runs are kept
    fresh: bool = False  # start over; the earlier run is moved aside
    seed: int = 0  # of the training, and of the noise that images start from
    device: str = "auto"  # cpu, cuda, cuda:1, mps, or auto: a GPU if there is one
    samples: int = 2000  # images to generate for evaluation, at each guidance scale

    # What may differ on a run that exists: SAMPLING needs new samples, FREE needs nothing.
    SAMPLING = {"samples", "sample_steps", "eta", "contrast", "interval", "scales"}
    FREE = {"dataset", "data_dir", "out", "fresh", "device", "prompt", "n", "scale", "clip"}
    # The values for a script that has no such field.
    prompt, n, clip, scale, scales, interval, sample_steps = None, 16, "auto", 1.0, (1.0,), None, 1
    family = "diffusion"
    film = "x_t, from noise (t = 1000) to the image (t = 0)"  # the title of denoising.png

    def __post_init__(self):
        super().__post_init__()
        self.script = Path(getattr(sys.modules[type(self).__module__], "__file__", "notebook")).stem
        self.folder = self.out / self.name / self.script
        self.checkpoint = self.folder / "checkpoints" / "last.pt"
        shipped = ROOT / "assets" / f"{self.script}_{self.name}.pt"
        if self.interval and self.interval[0] > self.interval[1]:
            raise UserError("--interval: the lower t comes first")
        if self.prompt is not None:
            self.prompt = readable(self.prompt)
            if not self.prompt.strip() or not self.prompt.isprintable():
                raise UserError('--prompt: it needs readable text, such as "a thick seven"')
            if shipped.exists() and self.out == Path("results") and not self.checkpoint.exists():
                self.checkpoint = shipped

    def has(self, field: str) -> bool:
        """Whether the script has such a field; "prompt": it reads text, "scales": has guidance."""
        return field in self.__dataclass_fields__

    def choices(self) -> dict:
        """All fields, as JSON has them."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def parse(cls, argv: list[str] | None = None, **default):
        """As above; with --prompt, choices that are not typed are those of the trained run."""
        config = super().parse(argv, **default)
        if config.prompt is None or not config.checkpoint.exists():
            return config
        with reading(config.checkpoint, RETRAIN):
            trained = load_tensors(config.checkpoint)["config"]
        names = {field.name for field in dataclasses.fields(cls)} - cls.FREE - {"seed"}
        known = {x: trained[x] for x in names if x in trained}
        known = {x: tuple(y) if isinstance(y, list) else y for x, y in known.items()}
        return super().parse(argv, default=cls(dataset=config.dataset, **known))


def prepare_terminal() -> None:
    """No character fails to print; Ctrl-C and a lack of memory print one line each."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def report(kind, error, trace):
        if issubclass(kind, KeyboardInterrupt):
            say("stopped; the same command (without --fresh) continues from the last checkpoint")
        elif issubclass(kind, MemoryError) or "out of memory" in str(error):
            say("error: out of memory; try a smaller --batch-size")
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = report
