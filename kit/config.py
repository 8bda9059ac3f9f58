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
from kit.words import DATASETS, class_names, data_kind, readable

RETRAIN = "copy the file back from a backup, or train again with --fresh"


@dataclass
class DataConfig:
    """What is learned."""

    dataset: str = "mnist"  # mnist, emnist, quickdraw, or a folder: a subfolder for each class
    emnist_split: Literal["letters", "balanced", "byclass", "digits"] = "letters"  # of EMNIST
    classes: tuple[str, ...] = ()  # QuickDraw's categories, such as cat rainbow train; else ten
    per_class: int = 5000  # QuickDraw's drawings of each category
    data_dir: Path = Path("data")  # where data sets and caches are kept

    @property
    def name(self) -> str:
        """The data set's name: that of its folder, if it is one."""
        return self.dataset if self.dataset in DATASETS else Path(self.dataset).resolve().name

    def __post_init__(self):
        """UserError for choices that would silently do harm."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path):
                setattr(self, field.name, value.expanduser())
            for number in value if isinstance(value, tuple) else [value]:
                typed = f"--{field.name.replace('_', '-')} {number}"
                if isinstance(number, int | float) and not 0 <= number < math.inf:
                    raise UserError(f"{typed}: it must be a finite number, and not negative")
                if field.name in AT_LEAST_ONE and number < 1:
                    raise UserError(f"{typed}: it must be at least 1")
        if data_kind(self) == "folder":
            self.check_folder()
        names = class_names(self)
        if self.classes and tuple(self.classes) != names:
            raise UserError(f"--classes: the classes of {self.dataset} are {', '.join(names)}")
        self.classes = names

    def check_folder(self) -> None:
        folder = Path(self.dataset).expanduser()
        self.dataset = str(folder)
        if self.name in DATASETS:
            raise UserError(f"--dataset {folder}: rename the folder, {self.name} is taken")
        for flag in ("out", "data_dir"):  # what is written there would become pictures
            path = getattr(self, flag, None)
            if path is not None and folder.resolve() in (path.resolve(), *path.resolve().parents):
                typed = f"--{flag.replace('_', '-')} {path}"
                raise UserError(f"{typed} is inside the folder of pictures; choose another")

    @classmethod
    def parse(cls, argv: list[str] | None = None):
        """argv, or None for the command line -> choices. UserError for flags that are wrong."""
        prepare_terminal()
        if argv is None and "kernel_launcher" in sys.argv[0]:  # a notebook's own arguments
            argv = []
        return cls.from_flags(argv)

    @classmethod
    def from_flags(cls, argv: list[str] | None, **default):
        module, message = sys.modules[cls.__module__], io.StringIO()
        name = Path(getattr(module, "__file__", "notebook.py")).name
        options = {"prog": name, "description": module.__doc__, "args": argv, **default}
        try:
            with contextlib.redirect_stderr(message):
                return tyro.cli(cls, **options)
        except SystemExit as stop:
            if isinstance(stop, UserError) or not stop.code:
                raise
            lines = [line.strip("│ ") for line in message.getvalue().splitlines()[1:]]
            rule = next((i for i, line in enumerate(lines) if line.startswith("──")), None)
            raise UserError(f"{' '.join(lines[:rule])}; {name} --help lists the flags") from None


AT_LEAST_ONE = "train_steps", "batch_size", "sample_steps", "samples", "n", "per_class"


@dataclass
class Config(DataConfig):
    """The choices that all scripts share; each script adds its own."""

    out: Path = Path("results")  # where runs are kept
    fresh: bool = False  # start over; the earlier run is moved aside
    seed: int = 0  # of the training, and of the noise that images start from
    device: str = "auto"  # cpu, cuda, cuda:1, mps, or auto: a GPU if there is one
    samples: int = 2000  # images to generate for evaluation, at each guidance scale

    # A run on disk may be given other values of these: SAMPLING are then applied to its samples.
    SAMPLING = {"samples", "sample_steps", "eta", "contrast", "interval", "scales"}
    FREE = {"dataset", "data_dir", "out", "fresh", "device", "prompt", "n", "scale", "clip"}
    # What a script without such a field has instead.
    prompt, n, clip, scale, scales, interval, sample_steps = None, 16, "auto", 1.0, (1.0,), None, 1
    family = "diffusion"
    film = "x_t, from noise (t = 1000) to the image (t = 0)"  # title of denoising.png

    @property
    def script(self) -> str:
        """The name of the script; in a notebook that of its cell, or "notebook"."""
        return Path(getattr(sys.modules[type(self).__module__], "__file__", "notebook")).stem

    @property
    def description(self) -> str:
        return (sys.modules[type(self).__module__].__doc__ or "").strip().split("\n")[0]

    @property
    def has_text(self) -> bool:
        return "prompt" in self.__dataclass_fields__

    @property
    def has_guidance(self) -> bool:
        return "scales" in self.__dataclass_fields__

    @property
    def folder(self) -> Path:
        return self.out / self.name / self.script

    @property
    def checkpoint(self) -> Path:
        """The run's; a prompt without a run uses the weights in assets/, if there are any."""
        own = self.folder / "checkpoints" / "last.pt"
        shipped = ROOT / "assets" / f"{self.script}_{self.name}.pt"
        use_shipped = self.prompt is not None and not own.exists() and shipped.exists()
        return shipped if use_shipped and self.out == Path("results") else own

    def choices(self) -> dict:
        """All fields, as JSON represents them."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    def __post_init__(self):
        super().__post_init__()
        if self.interval and self.interval[0] > self.interval[1]:
            raise UserError("--interval takes the lower t first")
        if self.prompt is not None:
            try:
                self.prompt = readable(self.prompt)
                self.prompt.encode()
            except UnicodeEncodeError:
                raise UserError("the prompt is not valid UTF-8") from None
            if not self.prompt.strip():
                raise UserError('the prompt is empty; try "a thick seven leaning left"')

    @classmethod
    def parse(cls, argv: list[str] | None = None):
        """As above; with --prompt, choices that are not typed are those of the trained run."""
        config = super().parse(argv)
        if config.prompt is None or not config.checkpoint.exists():
            return config
        with reading(config.checkpoint, RETRAIN):
            trained = load_tensors(config.checkpoint)["config"]
            names = {field.name for field in dataclasses.fields(cls)} - cls.FREE - {"seed"}
            known = {name: restored(trained[name]) for name in names if name in trained}
            # The run knows the classes of a folder that is gone.
            default = dataclasses.replace(cls(), dataset=config.dataset, **known)
        return cls.from_flags(argv, default=default)


def restored(value):
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def prepare_terminal() -> None:
    """No character fails to print; Ctrl-C and a lack of memory print one line each."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def report(kind, error, trace):
        if issubclass(kind, KeyboardInterrupt):
            say("stopped; the same command (without --fresh) continues from the last checkpoint")
        elif "out of memory" in str(error) or issubclass(kind, MemoryError):
            say("error: out of memory; try a smaller --batch-size")
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = report
