"""Choices that are flags: a field of a Config is a flag, with its help and its check."""

import argparse
import dataclasses
import json
import math
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path

from kit.base import UserError, expanded
from kit.datasets import DATASETS, DRAWINGS, EMNIST_SPLITS, OWNERS, settle_dataset


def flag(default, help: str, least=-math.inf, most=math.inf, *, multiple=1, choices=None,
         use="training", **of_dataset):  # fmt: skip
    """A field of a Config: its default, its help, and its check: each number from least to most.

    use     what another value means for a run on disk: "training", that it is another run;
            "sampling", that its samples are drawn again; "free", nothing
    others  defaults for a data set where it differs, as quickdraw=5000
    """
    check = {"least": least, "most": most, "multiple": multiple}
    facts = {"help": help, "check": check, "choices": choices, "use": use, "of_dataset": of_dataset}
    return dataclasses.field(default=default, metadata=facts)


# ── From text to value ──


def number(kind, least=-math.inf, most=math.inf, multiple=1):
    """An argparse type, named for its message: "invalid number from 0 to 100 value: '-1'"."""

    def parse(text: str):
        value = kind(text) + 0  # of -0.0 it makes 0.0
        if not math.isfinite(value) or not least <= value <= most:
            raise ValueError
        if multiple > 1 and value % multiple:
            raise ValueError
        return value

    name = "whole number" if kind is int else "number"
    name += f", a multiple of {multiple}," if multiple > 1 else ""
    name += f" from {least:.10g}" if least > -math.inf else ""
    name += f" to {most:.10g}" if most < math.inf else ""
    parse.__name__ = name
    return parse


def several(parse_one, kind, count: int | None):
    """An argparse type for values with commas between: so many of them, or each once."""

    def parse(text: str):
        values = [parse_one(part.strip()) for part in text.split(",")]
        if count not in (None, len(values)):
            raise ValueError
        return kind(values if count else dict.fromkeys(values))

    parse.__name__ = f"list, with commas between, each a {parse_one.__name__}"
    return parse


def path(text: str) -> Path:
    if "\0" in text or not text.strip():
        raise ValueError
    found = expanded(text)
    if str(found).startswith("~"):  # an account without a home folder, or that does not exist
        raise ValueError
    return found


def parser_of(hint, check: dict):
    """The argparse type for a field's annotation."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # str | None
        hint = typing.get_args(hint)[0]
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (list, tuple):
        count = len(inner) if kind is tuple and Ellipsis not in inner else None
        return several(parser_of(inner[0], check), kind, count)
    if hint in (int, float):
        return number(hint, **check)
    return path if hint is Path else str


def plain(value):
    """value as JSON holds it: a tuple is a list there, and a path is text."""
    return json.loads(json.dumps(value, default=str))


# ── From fields to flags ──


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; {self.prog} --help lists the flags")


def add_flag(parser: Parser, field: dataclasses.Field, hint) -> None:
    """Only what is typed gets into argparse's result: so one can tell it from a default."""
    facts, default = field.metadata, field.default
    if isinstance(default, tuple):
        default = ",".join(f"{value:g}" for value in default)
    text = facts.get("help", "")
    if default not in (None, "", dataclasses.MISSING) and default is not False:
        others = [f", {name} {value}" for name, value in facts.get("of_dataset", {}).items()]
        text += f" (default {default}{''.join(others)})"
    options = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
    if facts.get("use") == "positional":
        parser.add_argument(field.name, nargs="*", **options)
        return
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = parser_of(hint, facts.get("check", {}))
        options["choices"] = facts.get("choices")
    parser.add_argument(f"--{field.name.replace('_', '-')}", **options)


class Flags:
    """What a dataclass of choices inherits: its fields become the flags of its script."""

    given = frozenset()  # the names of the flags that were typed

    @property
    def script(self) -> str:
        """The name of the file that the class stands in; of a notebook's cell, "notebook"."""
        return Path(getattr(sys.modules[type(self).__module__], "__file__", "notebook")).stem

    @property
    def description(self) -> str:
        """The first line of that file's docstring."""
        return (sys.modules[type(self).__module__].__doc__ or "").strip().split("\n")[0]

    @classmethod
    def parse(cls, argv: list[str] | None = None):
        """argv, or for None the command line -> choices. UserError for what makes no sense.

        The arguments of a notebook's kernel are no flags.
        """
        if argv is None and "kernel_launcher" in sys.argv[0]:
            argv = []
        module, fields = sys.modules[cls.__module__], dataclasses.fields(cls)
        name = Path(getattr(module, "__file__", "notebook.py")).name
        form = argparse.RawDescriptionHelpFormatter
        parser = Parser(name, None, module.__doc__, formatter_class=form, allow_abbrev=False)
        hints = typing.get_type_hints(cls)
        for field in fields:
            add_flag(parser, field, hints[field.name])
        typed = vars(parser.parse_args(argv))
        dataset = typed.get("dataset", getattr(cls, "dataset", None))
        defaults = {field.name: field.metadata.get("of_dataset", {}) for field in fields}
        defaults = {name: of[dataset] for name, of in defaults.items() if dataset in of}
        config = cls(**{**defaults, **typed})
        config.given = frozenset(typed)
        config.check()
        return config

    def check(self) -> None:
        """UserError for flags that do not go together."""


# ── What several commands have in common ──


@dataclass
class DataConfig(Flags):
    """What is learned."""

    dataset: str = flag("mnist", f"{', '.join(DATASETS)}, or a folder, in it one for each class")
    emnist_split: str | None = flag(None, "part of EMNIST (letters)", choices=[*EMNIST_SPLITS])
    classes: list[str] | None = flag(None, f"QuickDraw's, as {','.join(DRAWINGS)} (these)")
    per_class: int | None = flag(None, "images of each class, of QuickDraw (5000)", 20, 10**6)
    data_dir: Path = flag(Path("data"), "where data sets are kept", use="free")

    folder, pictures = None, None  # of one's own; no flags: settle_dataset() and settle_classes()

    def check(self) -> None:
        settle_dataset(self, getattr(self, "out", None))
        for name, owner in OWNERS.items():
            if name in self.given and self.dataset != owner:
                typed = f"--{name.replace('_', '-')}"
                raise UserError(f"{typed} goes with --dataset {owner}, not {self.dataset}")


@dataclass
class Config(DataConfig):
    """The choices of every model's script, which adds its own.

    A script with a field prompt reads text, and one with a field scales has guidance. What has no
    annotation here is no field: it is what a script without such a field answers.
    """

    out: Path = flag(Path("results"), "where runs are kept", use="free")
    fresh: bool = flag(False, "start over instead of going on with the run on disk", use="free")
    seed: int = flag(0, "of training, and of the noise images are drawn from", 0, 2**31)
    device: str = flag("auto", "cpu, cuda, cuda:1, mps; auto: a GPU if CUDA finds one", use="free")
    samples: int = flag(2000, "images drawn for evaluation, per scale", 2, 10**7, use="sampling")

    family = "diffusion"
    sampler = "SDE-DPM-Solver++(2M)"  # what another one has drawn is drawn again
    film = "x_t, from noise (t = 1000) to the image (t = 0)"  # what denoising.png shows
    reconstructs = False  # whether it gives an image back, as an autoencoder does
    prompt, n, clip = None, 16, "auto"
    scale, scales, interval = 1.0, (1.0,), None
    sample_steps = 1

    def names(self, use: str) -> list[str]:
        """The names of the fields of this use; see flag()."""
        fields = dataclasses.fields(self)
        return [field.name for field in fields if field.metadata.get("use", "training") == use]

    @property
    def has_text(self) -> bool:
        return "prompt" in self.__dataclass_fields__

    @property
    def has_guidance(self) -> bool:
        return "scales" in self.__dataclass_fields__

    def check(self) -> None:
        super().check()
        if self.interval is not None and self.interval[0] > self.interval[1]:
            first, last = self.interval
            raise UserError(f"--interval {first},{last}: the lower t comes first, {last},{first}")
        example = 'for example --prompt "a thick seven leaning left"'
        if self.prompt is None:
            alone = sorted(self.given & {"n", "scale"})
            if alone:
                raise UserError(f"--{alone[0]} goes with --prompt, {example}")
            return
        ignored = sorted(self.given & {"fresh", "samples", "scales"})
        if ignored:
            raise UserError(f"--{ignored[0]} does not go with --prompt, which has no use for it")
        if not self.prompt.strip():
            raise UserError(f"the prompt is empty; {example}")
        try:
            self.prompt.encode()
        except UnicodeEncodeError as error:  # bytes that are no UTF-8 become surrogates
            raise UserError(f"the prompt is no text: {error}") from None
