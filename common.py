"""What the scripts share and what is no lesson: flags, data, prompts, noise schedule, the run folder."""

import argparse
import csv
import hashlib
import json
import math
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
T = 1000  # diffusion steps
TRAIN_STEPS = {"mnist": 5800}
FIRST_WITH = {"prompt": "a1_cond", "n": "a1_cond", "clip": "a2_clip", "scale": "a3_cfg", "scales": "a3_cfg"}
NOT_FOR_A_GAN = "scale", "scales", "sample-steps", "eta"
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CLASS_WORDS = {"mnist": [(word, str(digit)) for digit, word in enumerate(DIGITS)]}
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
    parser = Parser(f"{script}.py", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist", choices=list(CLASS_WORDS), help="what to learn (default mnist)")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on with the run on disk")
    for flag, kind, default, text in [
        ("train-steps", count, None, f"optimiser steps (default {defaults.get('train_steps', TRAIN_STEPS['mnist'])})"),
        ("batch-size", count, 32, "images per step (default %(default)s)"),
        ("lr", number(float, 1e-9, 1), 3e-3, "peak learning rate (default %(default)s)"),
        ("seed", number(int, 0, 2**31), 0, "of training, and of the noise images are drawn from (default 0)"),
        ("device", str, "auto", "cpu, cuda, cuda:1, mps, or (default) auto: a GPU if CUDA finds one, else cpu"),
        ("clip", str, "auto", "tiny, ViT-B/32 or another of OpenAI's, a file, or (default) auto: ViT-B/32, else tiny"),
        ("sample-steps", number(int, 1, T), 14, "DDIM steps from noise to image, 1 to 1000 (default 14)"),
        ("eta", number(float, 0, 1), 1.0, "noise put back while sampling: 0 none to 1 as much as DDPM (default 1)"),
        ("samples", count, 2000, "images to draw for evaluation, per guidance scale (default 2000)"),
        ("scales", many, [1.0, 2.0, 3.0], "their guidance scales (default 1,2,3)"),
        ("data-dir", Path, Path("data"), "where data sets are kept (default data)"),
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
        sys.exit("\nstopped; training goes on from its last checkpoint when started again without --fresh")
    except (UserError, OSError, RuntimeError, UnicodeError) as error:  # RuntimeError: memory, disk full in torch.save
        print(f"error: {error if isinstance(error, UserError) else one_line(error)}", file=sys.stderr)
        sys.exit(2)


def reachable(url: str, seconds: float = 5.0) -> bool:
    """Whether url's host answers at all. In a thread, because a dead name server ignores a socket's time-out."""
    answers = []

    def ask():
        try:
            answers.append(urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close())
        except Exception as error:  # an error's number is an answer all the same
            answers.extend([error] if isinstance(error, urllib.error.HTTPError) else [])

    (thread := threading.Thread(target=ask, daemon=True)).start()
    thread.join(seconds + 1)
    return bool(answers)


def fetch(url: str, path: Path, sha256: str) -> None:
    """Download to path what is not there yet, its SHA-256 (or the beginning of it) checked. UserError if that fails."""
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256):
        return
    if not reachable(url):
        raise UserError(f"{path} is missing or damaged and {url.split('/')[2]} does not answer")
    socket.setdefaulttimeout(15)  # a download that stalls for longer is given up
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=sys.stderr.isatty())
    except Exception as error:  # of many kinds
        raise UserError(f"{path} is missing or damaged and its host sends no such file ({one_line(error)})") from None


def load_dataset(name: str, root: Path, split: str = "train"):
    """split train or test -> images (N, 1, 28, 28) in [-1, 1], labels int64 (N,), class names, where they come from."""
    pixels, labels, source = load_mnist(Path(root), split)
    return pixels[:, None].float() / 127.5 - 1, labels, [words[0] for words in CLASS_WORDS[name]], source


def load_mnist(root: Path, split: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """-> pixels uint8 (N, 28, 28), labels (N,), source. What is on disk, else the download, else the embedded ones."""
    from torchvision.datasets import MNIST

    socket.setdefaulttimeout(15)  # a download that stalls for longer is given up; torchvision itself never does
    raw, why = root / "MNIST" / "raw", "no host answers"
    for attempt in range(3):  # what is on disk, the download, and once more if it came damaged
        packed = all((raw / name).exists() for name, _ in MNIST.resources)  # then unpacking them needs no network
        if attempt and not packed and not any(reachable(url) for url in MNIST.mirrors):
            break
        try:
            data = MNIST(root, train=split == "train", download=attempt > 0)
            assert len(data.data) == len(data.targets), f"{len(data.data)} images, {len(data.targets)} labels"
            return data.data, data.targets, "torchvision"
        except Exception as error:  # of many kinds; none may reach training
            if attempt:
                why = one_line(error)
            elif "not found" not in str(error):  # but damaged: torchvision checks a .gz, not the file it unpacked
                print(f"MNIST: damaged {split} files in {raw} ({one_line(error)}); fetching again", file=sys.stderr)
                for path in raw.glob("train-*-ubyte" if split == "train" else "t10k-*-ubyte"):
                    path.replace(path.with_name(f"{path.name}.damaged"))
    print(f"MNIST: {why}; using the 5,000 embedded. For all 70,000 put the four .gz files in {raw}", file=sys.stderr)
    return *embedded_mnist(split), "embedded"


def embedded_mnist(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """-> pixels uint8 (N, 28, 28), labels (N,): 450 of each digit in "train", the other 50 in "test"."""
    with np.load(ROOT / "assets" / "mnist_5k.npz") as file:
        pixels, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    chosen = (torch.arange(len(labels)) % 10 == 9) == (split == "test")  # the file is sorted by class
    return pixels[chosen], labels[chosen]


def phrasings(dataset: str, templates: list[str]) -> list[list[str]]:
    """Every template with every word of a class: a list per class, all of one length."""
    return [[t.format(word) for t in templates for word in words] for words in CLASS_WORDS[dataset]]


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
        if args.prompt is None:
            self.check(**{name: getattr(args, name) for name in self.TRAINING})
        elif not self.config:
            raise UserError(f"nothing trained at {self.last}; first: python {args.script}.py --dataset {args.dataset}")
        self.clip = self.config.get("text_encoder", "auto") if args.clip == "auto" else args.clip

    def check(self, **facts) -> None:
        """UserError if the run on disk was made with others."""
        for name, value in facts.items():
            if self.config.get(name, value) != value:
                raise UserError(f"{self.last} has {name} {self.config[name]}, not {value}; --fresh or another --out")

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
        images, labels, _, source = load_dataset(self.args.dataset, self.args.data_dir)
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
