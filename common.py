"""What the scripts share and what is no lesson: flags, data, prompts, noise schedule, the run folder."""

import argparse
import csv
import json
import math
import pickle
import re
import subprocess
import sys
import textwrap
import time
from importlib import metadata
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
T = 1000  # diffusion steps
FIRST_WITH = {"prompt": "a1_cond", "n": "a1_cond", "clip": "a2_clip", "scale": "a3_cfg", "scales": "a3_cfg"}
NOT_FOR_A_GAN = "scale", "scales", "sample-steps", "eta"
WHICH = {"emnist_split": "emnist", "classes": "quickdraw", "per_class": "quickdraw"}  # flag -> whose images it picks

# What differs between data sets: steps, classes (in the order of grids), phrasings. {} is one of a class's words.
TRAIN_STEPS = {"mnist": 5800, "emnist": 5800, "quickdraw": 5000}
SAMPLE_STEPS = {"mnist": 14, "emnist": 14, "quickdraw": 20}
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
EMNIST_SPLITS = {"letters": ascii_uppercase, "balanced": digits + ascii_uppercase + "abdefghnqrt"}
EMNIST_SPLITS |= {"byclass": digits + ascii_uppercase + ascii_lowercase, "digits": digits}  # Cohen et al. 2017
DRAWINGS = ["apple", "bicycle", "cat", "eyeglasses", "fish", "house", "rainbow", "star", "train", "tree"]
TRAIN_TEMPLATES, HELDOUT_TEMPLATES = {}, {}  # the latter are never trained on by any model, tiny CLIP included
TRAIN_TEMPLATES["mnist"] = (
    "{}|a {}|the {}|the number {}|the digit {}|number {}|a handwritten {}|handwritten digit {}|"
    "a photo of the number {}|a drawing of a {}|an image of the digit {}|a white {} on black|please draw a {}|"
    "write the number {}|the numeral {} in handwriting|{}, handwritten"
).split("|")
HELDOUT_TEMPLATES["mnist"] = (
    "show me the figure {}|{} written with a pen|I would like a {} please|someone scribbled {} on paper|"
    "what does {} look like?|a scan of an old letter with {} in it|my favourite is {}|give me {}!|"
    "a child's attempt at writing {}|just {} and nothing else|chalk on a blackboard: {}|could you sketch {} for me"
).split("|")
TRAIN_TEMPLATES["emnist"] = (
    "{}|a {}|the {}|a handwritten {}|handwritten {}|a photo of the {}|a drawing of a {}|an image of the {}|"
    "a white {} on black|please draw a {}|write the {}|the {} in handwriting|{}, handwritten|{} in white ink"
).split("|")
HELDOUT_TEMPLATES["emnist"] = [
    x.replace("letter", "page").replace("figure", "character") for x in HELDOUT_TEMPLATES["mnist"]
]
TRAIN_TEMPLATES["quickdraw"] = (
    "{}|a drawing of {}|a doodle of {}|a sketch of {}|a quick sketch of {}|an image of {}|the outline of {}|"
    "please draw {}|{}, drawn in seconds|{} in white on black|a simple drawing of {}|{}: a doodle|draw me {}"
).split("|")
HELDOUT_TEMPLATES["quickdraw"] = (
    "show me {}|can you scribble {} for me?|I would like {} please|{} scribbled on a napkin|my favourite is {}|"
    "what does {} look like?|chalk on a blackboard: {}|give me {}!|just {} and nothing else|guess what this is: {}|"
    "a child's attempt at {}|somebody drew {} with a pen"
).split("|")
UNREADABLE = RuntimeError, pickle.PickleError, LookupError, AttributeError, TypeError, ValueError, EOFError, OSError


class UserError(Exception):
    """Something the user can mend; cli() prints it as one line and exits with code 2."""


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n")[0].split())[:160] or type(error).__name__


def meaningless(script: str, flag: str) -> bool:
    return flag in NOT_FOR_A_GAN if script == "cgan" else script < FIRST_WITH.get(flag, "")  # names sort as the ladder


class Parser(argparse.ArgumentParser):
    def parse_args(self, args=None, namespace=None):
        return super().parse_args([] if args is None and "kernel_launcher" in sys.argv[0] else args, namespace)

    def error(self, message):
        for flag in re.findall(r"^unrecognized arguments: --([\w-]+)", message):
            if meaningless(self.prog[:-3], flag):
                message = f"--{flag} means nothing to {self.prog}; {FIRST_WITH.get(flag, 'a0_uncond')}.py has it"
        raise UserError(f"{message}; {self.prog} --help lists the flags")


def number(kind, low, high, many=False):
    """An argparse type; its name ends up in the message: "invalid number from 0 to 100 value: '-1'"."""

    def parse(text):
        values = sorted({kind(part) for part in (text.split(",") if many else [text])})
        if not low <= values[0] <= values[-1] <= high:
            raise ValueError
        return values if many else values[0]

    parse.__name__ = f"{'whole ' if kind is int else ''}number from {low} to {high}"
    return parse


def parse_args(script: str, doc: str, argv: list[str] | None = None, **defaults) -> argparse.Namespace:
    """The flags of every model script. argv None: the command line's; a notebook kernel's own are no flags."""
    many, count = number(float, 0, 100, many=True), number(int, 1, 10**7)
    train_steps, sample_steps = (", ".join(map("{} {}".format, x, x.values())) for x in (TRAIN_STEPS, SAMPLE_STEPS))
    parser = Parser(f"{script}.py", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_flags(parser)
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on with the run on disk")
    for flag, kind, default, text in [
        ("train-steps", count, None, f"optimiser steps (default {defaults.get('train_steps', train_steps)})"),
        ("batch-size", count, 32, "images per step (default %(default)s)"),
        ("lr", number(float, 1e-9, 1), 3e-3, "peak learning rate (default %(default)s)"),
        ("seed", number(int, 0, 2**31), 0, "of training, and of the noise images are drawn from (default 0)"),
        ("device", str, "auto", "cpu, cuda, cuda:1, mps, or (default) auto: a GPU if CUDA finds one, else cpu"),
        ("clip", str, "auto", "tiny, ViT-B/32 or another of OpenAI's, a file, or (default) auto: ViT-B/32, else tiny"),
        ("sample-steps", number(int, 1, T), None, f"DDIM steps from noise to image, 1 to {T} (default {sample_steps})"),
        ("eta", number(float, 0, 1), 1.0, "noise put back while sampling: 0 none to 1 as much as DDPM (default 1)"),
        ("samples", count, 2000, "images to draw for evaluation, per guidance scale (default 2000)"),
        ("scales", many, [1.0, 2.0, 3.0], "their guidance scales (default 1,2,3)"),
        ("out", Path, Path("results"), "where runs are kept (default results)"),
        ("prompt", str, None, 'draw this from the trained model, for example "a handwritten seven"'),
        ("n", number(int, 1, 10000), None, "with --prompt: how many images (default 16)"),
        ("scale", number(float, 0, 100), None, "with --prompt: guidance scale, 1 is none (default 2)"),
    ]:  # fmt: skip
        parser.set_defaults(**{flag.replace("-", "_"): default})
        if not meaningless(script, flag):
            parser.add_argument(f"--{flag}", type=kind, default=default, help=text)
    parser.set_defaults(**defaults)
    args = parser.parse_args(argv, argparse.Namespace(script=script))
    if args.prompt is None and (args.n, args.scale) != (None, None):
        raise UserError('--n and --scale go with --prompt, for example --prompt "a handwritten seven"')
    if args.prompt is not None and (args.fresh or not args.prompt.strip()):
        raise UserError('the prompt is empty, or came with --fresh; for example: --prompt "a handwritten seven"')
    if meaningless(script, "scale"):
        args.scale, args.scales = 1.0, [1.0]
    args.n, args.scale = args.n or 16, 2.0 if args.scale is None else args.scale
    args.train_steps = args.train_steps or TRAIN_STEPS[args.dataset]
    args.sample_steps = args.sample_steps or SAMPLE_STEPS[args.dataset]
    args.device = pick_device(args.device)
    return args


def pick_device(name: str) -> torch.device:
    try:
        return torch.zeros(1, device=name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu").device
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"--device {name} cannot be used here ({one_line(error)}); try --device cpu") from None


def cli(main) -> None:
    """Run main(); what the user can mend becomes one line on stderr and exit code 2."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command without --fresh goes on from what is on disk")
    except (UserError, OSError, RuntimeError, UnicodeError) as error:  # RuntimeError: memory, disk full in torch.save
        print(f"error: {error if isinstance(error, UserError) else one_line(error)}", file=sys.stderr)
        sys.exit(2)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is learned: of the models' scripts, and of tiny_clip.py."""
    parser.add_argument("--dataset", default="mnist", choices=list(TRAIN_STEPS), help="what to learn (default mnist)")
    parser.add_argument("--emnist-split", choices=list(EMNIST_SPLITS), help="part of EMNIST (default letters)")
    parser.add_argument("--classes", help=f"QuickDraw's, with commas between (default {','.join(DRAWINGS)})")
    parser.add_argument("--per-class", type=number(int, 20, 10**6), help="images of each, of QuickDraw (default 5000)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where data sets are kept (default data)")


def load_dataset(name: str, root: Path, split: str = "train", **which):
    """split train or test -> images (N, 1, 28, 28) in [-1, 1], labels int64 (N,), class names, where they come from.

    which: emnist_split for EMNIST; classes and per_class for QuickDraw. UserError if the images cannot be had.
    """
    import loading  # which imports this module

    load = {"mnist": loading.mnist, "emnist": loading.emnist, "quickdraw": loading.quickdraw}[name]
    wanted = {flag: value for flag, value in which.items() if WHICH[flag] == name}
    pixels, labels, names, source = load(Path(root), split, **wanted)
    return pixels[:, None].float().div_(127.5).sub_(1), labels, names, source


def which(args: argparse.Namespace) -> dict:
    """The flags that pick images, as load_dataset wants them."""
    return {flag: getattr(args, flag) for flag in WHICH}


def class_words(dataset: str, classes: list[str]) -> list[tuple[str, str]]:
    """The two ways a prompt may name each class; CLIP reads no capitals, so two cases of a letter need words."""
    if dataset == "mnist":
        return [(name, str(digit)) for digit, name in enumerate(classes)]
    if dataset == "quickdraw":
        plural = re.compile(r".*(?<![uso])s|The .*")  # not octopus, hourglass, rhinoceros
        a = ["" if plural.fullmatch(name) else "an " if re.match("[aeiou]|hour", name) else "a " for name in classes]
        return [(name, article + name) for name, article in zip(classes, a)]
    words = {x: (x, DIGITS[int(x)]) if x in digits else (x, f"letter {x}") for x in classes}
    both = [x for x in classes if x.swapcase() in classes and x not in digits]
    words |= {x: (f"capital {x}", f"uppercase {x}") if x.isupper() else (f"small {x}", f"lowercase {x}") for x in both}
    return [*words.values()]


def phrasings(args: argparse.Namespace, templates: dict[str, list[str]]) -> list[list[str]]:
    """Every template of args.dataset with both words of each of args.classes: a list per class, all of one length."""
    words = class_words(args.dataset, args.classes)
    return [[t.format(word) for t in templates[args.dataset] for word in pair] for pair in words]


def cosine_alphas_bar(device: torch.device | str = "cpu") -> torch.Tensor:
    """float32 (T + 1,), 1 (clean) down to 0 (noise); DDIM's alpha. Nichol & Dhariwal 2021 Eq. 17, betas clipped too."""
    f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * math.pi / 2) ** 2
    return torch.cat([torch.ones(1), (f[1:] / f[:-1]).clamp(min=0.001).cumprod(0)]).float().to(device)


def save_file(path: Path, write) -> None:
    """write(file) beside path, then rename: path holds the old content or all of the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_csv(path: Path, rows: list[dict]) -> None:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    save_file(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))


def read_csv(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


class Progress(tqdm):
    """A bar that counts images; where there is no terminal, a line at every tenth of the way."""

    tenth, STYLE = 0, {"unit": "image", "leave": sys.stderr.isatty()}

    def display(self, *args, **kwargs):
        if sys.stderr.isatty():
            super().display(*args, **kwargs)
        elif self.n * 10 // self.total > self.tenth:
            self.tenth = self.n * 10 // self.total
            print(self, file=sys.stderr, flush=True)


class Run:
    """results/<dataset>/<script>/: what one run has on disk, and how far it has come."""

    LOG_EVERY, SAVE_EVERY = 20, 30  # steps, seconds: a kill costs at most their sum
    TRAINING, SAMPLING = ("train_steps", "batch_size", "lr", "seed"), ("samples", "sample_steps", "eta")

    def __init__(self, args: argparse.Namespace):
        import loading  # which imports this module

        self.args, self.folder = args, args.out / args.dataset / args.script
        self.last, self.images, self.metrics = (self.folder / x for x in ("checkpoints/last.pt", "images", "metrics"))
        self.config, self.step, self.losses = {}, 0, []  # losses: since the last line of loss.csv, name -> tensor each
        self.encoder = argparse.Namespace(name=None, crc32=None)  # a script that reads text puts its own here
        if self.last.exists() and not args.fresh:
            try:
                self.checkpoint = torch.load(self.last, map_location="cpu", weights_only=True)  # runs no code
                self.config, self.step = self.checkpoint["config"], self.checkpoint["step"]
            except UNREADABLE as error:
                raise UserError(f"{self.last} is damaged ({one_line(error)}); --fresh starts over") from None
        self.check(script=args.script, dataset=args.dataset)
        loading.settle_classes(args, self.config if args.prompt is not None else {})
        self.check(**which(args))
        if args.prompt is None:
            self.check(**{name: getattr(args, name) for name in self.TRAINING})
        elif not self.config:
            first = f"python {args.script}.py --dataset {args.dataset} (in a notebook: the cell under Train)"
            raise UserError(f"nothing trained at {self.last}; first: {first}")
        self.clip = self.config.get("text_encoder", "auto") if args.clip == "auto" else args.clip

    def check(self, **facts) -> None:
        """UserError if the run on disk was made with others."""
        for name, value in facts.items():
            if self.config.get(name, value) != value:
                old, new = (textwrap.shorten(str(x), 60, placeholder=" ...") for x in (self.config[name], value))
                raise UserError(f"{self.last} has {name} {old}, not {new}; --fresh or another --out")

    def drawn_alike(self) -> bool:
        """Whether the samples on disk, if any, were drawn with the sampling flags of now."""
        try:
            config = json.loads((self.folder / "config.json").read_text())
            return all(config[name] == getattr(self.args, name) for name in self.SAMPLING)
        except (OSError, ValueError, LookupError):
            return False

    def check_model(self, model: torch.nn.Module) -> None:
        """UserError if the run on disk was made with another network or text encoder."""
        encoder, parameters = self.encoder, sum(p.numel() for p in model.parameters())
        self.facts = {"text_encoder": encoder.name, "text_encoder_crc32": encoder.crc32, "parameters": parameters}
        self.check(**self.facts)

    def load_data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """-> the training images (N, 1, 28, 28) in [-1, 1] and labels (N,), on the device; config.json says whence."""
        images, labels, _, source = load_dataset(self.args.dataset, self.args.data_dir, **which(self.args))
        self.begin(data_source=source, image_count=len(images), **self.facts)
        return images.to(self.args.device), labels.to(self.args.device)

    def begin(self, **facts) -> None:
        """Write config.json: every flag, facts about data and encoder, versions, the code's revision."""
        self.check(**facts)
        if not self.step and (self.last.exists() or self.images.exists()):
            earlier = self.folder.rename(self.folder.with_name(f".{self.folder.name}_{time.time():.0f}"))
            print(f"the earlier run is now in {earlier}", file=sys.stderr)
        for path in [] if self.drawn_alike() else [*self.images.glob("samples*"), self.metrics / "performance.csv"]:
            path.unlink(missing_ok=True)
        status, revision = subprocess.getstatusoutput(f'git -C "{ROOT}" describe --always --dirty')
        facts |= {"git_revision": None if status else revision, "python": sys.version.split()[0]}
        facts["packages"] = {x: metadata.version(x) for x in ("torch", "torchvision", "numpy", "scipy", "matplotlib")}
        kept = {k: v for k, v in self.config.items() if k not in (*self.SAMPLING, "scales")}  # of the run continued
        text = json.dumps(vars(self.args) | facts | kept, indent=2, default=str)
        self.config = json.loads(text)  # plain types, as the checkpoint wants them
        save_file(self.folder / "config.json", lambda file: file.write(text.encode()))

    def steps(self, **modules):
        """Yield the number of each step still to do, from 0; in between write loss.csv and the modules' checkpoint."""
        args, batch = self.args, self.args.batch_size
        generators = {"random", "cuda"} if torch.cuda.is_available() else {"random"}
        if self.step:
            print(f"{self.folder}: going on from step {self.step} of {args.train_steps}", file=sys.stderr)
            for name, module in modules.items():
                module.load_state_dict(self.checkpoint[name])
            for name in generators & self.checkpoint["rng"].keys():
                getattr(torch, name).set_rng_state(self.checkpoint["rng"][name])
        rows = [row for row in read_csv(self.metrics / "loss.csv") if int(row["step"]) <= self.step]
        bar = Progress(desc="training", total=args.train_steps * batch, initial=self.step * batch, **Progress.STYLE)
        saved = start = time.perf_counter()
        while self.step < args.train_steps:
            yield self.step
            self.step += 1
            if self.step % self.LOG_EVERY and self.step < args.train_steps and time.perf_counter() - start < 30:
                continue
            losses = {x: f"{torch.stack([row[x] for row in self.losses]).mean().item():.6f}" for x in self.losses[0]}
            for name, mean in losses.items():
                if not math.isfinite(float(mean)):
                    raise UserError(f"{name} is {mean} at step {self.step}; try --fresh with --lr {args.lr / 3:g}")
            images, seconds = len(self.losses) * batch, time.perf_counter() - start
            rows.append({"step": self.step, **losses, "images_per_second": f"{images / seconds:.4g}"})
            bar.set_postfix(losses, refresh=False)
            bar.update(images)
            if time.perf_counter() - saved > self.SAVE_EVERY or self.step == args.train_steps:
                save_csv(self.metrics / "loss.csv", rows)
                state = {name: module.state_dict() for name, module in modules.items()} | {"step": self.step}
                rng = {name: getattr(torch, name).get_rng_state() for name in generators}
                save_file(self.last, lambda file: torch.save(state | {"config": self.config, "rng": rng}, file))
                saved = time.perf_counter()
            self.losses, start = [], time.perf_counter()
        bar.close()
