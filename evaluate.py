"""Measures every run of a data set, from its saved files alone: how real, how various, how obedient its images are.

Command   python evaluate.py --dataset mnist            every run in results/mnist and results/*/mnist, or those named
Writes    metrics/fid_scores.csv, mse_diversity.csv and clip_sim_scores.csv of each run; prints all as one table
Metrics   FID (Heusel et al. 2017), precision (Kynkäänniemi et al. 2019), coverage (Naeem et al. 2020): on features of
          Inception v3, or else of tiny CLIP, scaled so that their FID is 1000 times that of its embeddings
          diversity: mean squared difference of two images of a class; of_real: as a share of real images'
          clip_similarity: cosine of image and prompt; accuracy: tiny CLIP reads the class that was asked for
Floors    The same for real images outside the reference, for noise, and (similarity) for prompts of other classes
"""

import argparse
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.models import inception_v3

import common
import drawing
import loading
import tiny_clip
from drawing.tables import table

INCEPTION = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"
REFERENCE = 5000  # real images that others are compared with, at most
TABLES = {
    "fid_scores": ("fid", "precision", "coverage", "reference", "samples_crc32"),
    "mse_diversity": ("mse_diversity", "of_real", "least_of_real", "least_class"),
    "clip_sim_scores": ("clip_similarity", "with_wrong_prompts", "accuracy"),
}


# ── What sees the images ──


def inception_features(device: torch.device):
    """-> pixels uint8 (n, 28, 28) -> (n, 2048): of torchvision's Inception v3, before its last layer."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION.split("/")[-1]
    loading.fetch(INCEPTION, path, path.stem.split("-")[-1])
    try:
        net = inception_v3(
            weights=None, init_weights=False, transform_input=False
        )  # as it is fed pixels in [-1, 1]
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except common.UNREADABLE as error:
        raise common.UserError(
            f"{path} is no Inception v3 of torchvision ({common.one_line(error)})"
        ) from None
    net.fc = torch.nn.Identity()
    net.eval().to(device)

    @torch.no_grad()
    def features(pixels: np.ndarray) -> np.ndarray:
        parts = common.Progress(
            drawing.to_images(pixels).expand(-1, 3, -1, -1).split(50), "Inception", leave=False
        )
        return torch.cat(
            [net(F.interpolate(x.to(device), 299, mode="bilinear")).cpu() for x in parts]
        ).numpy()

    return features


def pick_extractor(name: str, tiny: tiny_clip.Clip):
    """name: auto, inception or tiny -> its name in columns, a function from pixels (n, 28, 28) to features (n, d)."""
    try:
        if name != "tiny":
            return "inception_v3", inception_features(tiny.device)
    except common.UserError as error:
        if name != "auto":
            raise
        print(f"FID: {error}; using the features of tiny CLIP", file=sys.stderr)
    return (
        "tiny_clip",
        lambda pixels: tiny.encode_image(drawing.to_images(pixels)).cpu().numpy() * 1000**0.5,
    )


# ── Metrics ──


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between Gaussians fitted to features (n, d) and (m, d), in float64: FID's formula, Heusel et al. 2017 Eq. 6."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(cov_a)
    root = (
        vectors * np.sqrt(values.clip(0)) @ vectors.T
    )  # root(AB) and root(root(A) B root(A)) have one trace
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(
        ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace
    )


def precision_coverage(real: np.ndarray, drawn: np.ndarray, k: int = 5) -> tuple[float, float]:
    """The share of drawn features (m, d) that lie nearer to a real one (n, d) than its k-th real neighbour does, and
    the share of real ones with a drawn one so near (Kynkäänniemi et al. 2019, Naeem et al. 2020)."""
    real, drawn = torch.from_numpy(real), torch.from_numpy(drawn)
    radius = torch.cdist(real, real).kthvalue(k + 1).values  # the nearest is the image itself
    inside = torch.cdist(real, drawn) <= radius[:, None]  # (n, m)
    return inside.any(0).float().mean().item(), inside.any(1).float().mean().item()


def mse_diversity(pixels: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Class -> mean squared difference of two of its images, over pixels from 0 to 1. Needs two images of a class."""
    groups = {
        int(y): pixels[labels == y] for y in np.unique(labels)
    }  # the mean over all pairs is twice the variance
    return {y: float(2 * x.var(0, ddof=1).mean() / 255**2) for y, x in groups.items() if len(x) > 1}


def wrong_prompts(labels: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Each image's prompt replaced by one of another class, the next in turn."""
    order, wrong = np.unique(labels), prompts.copy()
    for y, other in zip(order, np.roll(order, 1)):
        wrong[labels == y] = np.resize(prompts[labels == other], (labels == y).sum())
    return wrong


def clip_similarity(clip: tiny_clip.Clip, seen: np.ndarray, prompts: np.ndarray) -> float:
    """Mean cosine between images, given as their embeddings (n, dim), and their prompts."""
    texts, index = np.unique(prompts, return_inverse=True)
    return float((seen * clip.encode_text(texts.tolist()).cpu().numpy()[index]).sum(1).mean())


# ── Every run ──


class Judge:
    """Measures images against real ones: of each class an equal number is the reference, as many others calibrate."""

    def __init__(self, args: argparse.Namespace):
        images, labels, self.names, _ = common.load_dataset(
            args.dataset, args.data_dir, **common.which(args)
        )
        self.tiny, self.clip = (tiny_clip.load_clip(name, args) for name in ("tiny", args.clip))
        self.extractor, self.features = pick_extractor(args.extractor, self.tiny)
        self.classes = tiny_clip.class_vectors(self.tiny, args).cpu().numpy()
        half = min(REFERENCE // len(self.names), labels.bincount().min().item() // 2)
        torch.manual_seed(0)
        groups = [(labels == y).nonzero()[:, 0] for y in range(len(self.names))]
        picked = torch.stack(
            [group[torch.randperm(len(group))[: 2 * half]] for group in groups], 1
        )  # (2 half, C)
        pixels = drawing.to_pixels(images[picked.flatten()])
        self.reference, self.real = (
            self.features(pixels[: len(pixels) // 2]),
            pixels[len(pixels) // 2 :],
        )
        prompts, labels = drawing.balanced_prompts(args, common.TRAIN_TEMPLATES, len(self.real))
        self.labels, self.prompts, self.floors = labels.numpy(), np.array(prompts), {}
        self.diversity = mse_diversity(self.real, self.labels)

    def measure(self, pixels: np.ndarray, labels: np.ndarray, prompts: np.ndarray) -> dict:
        """All columns for images uint8 (n, 28, 28). Labels -1: nobody asked, so the class is the one that is read."""
        features, tiny = (
            self.features(pixels),
            self.tiny.encode_image(drawing.to_images(pixels)).cpu().numpy(),
        )
        read, asked = (tiny @ self.classes.T).argmax(1), labels.min() >= 0
        precision, coverage = precision_coverage(self.reference, features)
        fid = {
            "fid": frechet_distance(features, self.reference),
            "precision": precision,
            "coverage": coverage,
        }
        row = {
            f"{name}_{self.extractor}": value for name, value in fid.items()
        }  # two extractors share no column
        row |= {
            "reference": len(self.reference),
            "extractor": self.extractor,
            "text_encoder": self.clip.name,
        }
        diversity = mse_diversity(pixels, labels if asked else read) or {0: np.nan}
        share = {y: value / self.diversity[y] for y, value in diversity.items()}
        least = min(share, key=share.get)
        row |= {
            "mse_diversity": float(np.mean([*diversity.values()])),
            "of_real": float(np.mean([*share.values()])),
        }
        row |= {"least_of_real": share[least], "least_class": self.names[least]}
        row |= dict.fromkeys(("clip_similarity", "with_wrong_prompts", "accuracy"), np.nan)
        if asked:
            same = self.clip.crc32 == self.tiny.crc32
            seen = tiny if same else self.clip.encode_image(drawing.to_images(pixels)).cpu().numpy()
            row["clip_similarity"] = clip_similarity(self.clip, seen, prompts)
            row["with_wrong_prompts"] = clip_similarity(
                self.clip, seen, wrong_prompts(labels, prompts)
            )
            row["accuracy"] = float((read == labels).mean())
        return row

    def calibrate(self, n: int) -> list[dict]:
        """Rows of n real images and n of noise, in place of a model's."""
        noise = np.random.default_rng(0).integers(
            0, 256, (n := min(n, len(self.real)), 28, 28), np.uint8
        )
        for name, pixels in (
            {"real images": self.real, "noise": noise}.items() if n not in self.floors else ()
        ):
            head = {
                "model": name,
                "phrasings": "trained",
                "scale": "",
                "n": n,
                "seed": 0,
                "samples_crc32": "",
            }
            row = head | self.measure(pixels[:n], self.labels[:n], self.prompts[:n])
            self.floors[n] = [*self.floors.get(n, ()), row]
        return self.floors[n]

    def judge(self, folder: Path) -> list[dict]:
        """Measure all samples of a run and write its CSVs -> their rows, joined."""
        seed, rows = drawing.read_config(folder)["seed"], []
        for path in sorted(
            folder.glob("images/samples_*.npz"),
            key=lambda path: ("heldout" in path.name, path.name),
        ):
            images, labels, prompts = drawing.load_samples(path)
            phrasings = (
                "none" if labels.min() < 0 else "held out" if "heldout" in path.name else "trained"
            )
            head = {"model": folder.name, "phrasings": phrasings, "scale": path.stem.split("_w")[1]}
            head |= {"n": len(images), "seed": seed, "samples_crc32": zlib.crc32(path.read_bytes())}
            rows.append(head | self.measure(images, labels, prompts))
        rows += [floor for n in sorted({row["n"] for row in rows}) for floor in self.calibrate(n)]
        for name, columns in TABLES.items():
            names = (
                "model",
                "phrasings",
                "scale",
                "n",
                "seed",
                "extractor",
                "text_encoder",
                *columns,
            )
            chosen = [
                {k: v for k, v in row.items() if k.removesuffix(f"_{self.extractor}") in names}
                for row in rows
            ]
            texts = [
                {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}
                for row in chosen
            ]
            common.save_csv(folder / "metrics" / f"{name}.csv", texts)
        return rows


def find_runs(args: argparse.Namespace) -> list[Path]:
    """Folders with samples in --out/<dataset> and --out/*/<dataset>; UserError if there is none, or none of a name.

    Puts into args what the first of them learned; those that learned something else are left out.
    """
    found = [
        x for under in ("", "*/") for x in sorted(args.out.glob(f"{under}{args.dataset}/[!.]*"))
    ]
    found = [path for path in found if any(path.glob("images/samples_*.npz"))]
    for name in args.models or ["a4_full"] * (not found):
        if name not in [path.name for path in found]:
            first = f"python {name}.py --dataset {args.dataset}"
            raise common.UserError(
                f"no samples of {name} in {args.out / args.dataset}; first: {first}"
            )
    found = [path for path in found if not args.models or path.name in args.models]
    which = {path: [drawing.read_config(path).get(flag) for flag in common.WHICH] for path in found}
    for path in found:
        if which[path] != which[found[0]]:
            print(
                f"left out: {path}, which has other classes or images than {found[0]}",
                file=sys.stderr,
            )
    for flag, value in zip(common.WHICH, which[found[0]]):
        setattr(args, flag, value)
    return [path for path in found if which[path] == which[found[0]]]


def parser(script: str, doc: str) -> argparse.ArgumentParser:
    """The flags of this script that compare.py has too."""
    parser = common.Parser(
        script, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="for example a4_full; default: every run found")
    parser.add_argument(
        "--dataset", default="mnist", choices=list(common.TRAIN_STEPS), help="default mnist"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="where runs are kept (default results)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    flags = parser("evaluate.py", __doc__)
    flags.add_argument(
        "--extractor",
        default="auto",
        choices=["auto", "inception", "tiny"],
        help="of FID; default auto",
    )
    flags.add_argument(
        "--clip", default="auto", help="for clip_similarity, as the models' flag (default auto)"
    )
    flags.add_argument("--device", default="auto", help="cpu, cuda, ...; default auto")
    flags.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="where data sets are kept (default data)",
    )
    args = flags.parse_args(argv)
    args.device = common.pick_device(args.device)
    runs, judge = find_runs(args), Judge(args)
    rows = [
        row | {"model": x.relative_to(args.out)}
        for x in runs
        for row in judge.judge(x)
        if row["scale"]
    ]
    rows += [row for n in sorted(judge.floors) for row in judge.floors[n]]
    hidden = "reference", "extractor", "mse_diversity", "text_encoder", "samples_crc32"
    print(table([{k: v for k, v in row.items() if k not in hidden} for row in rows]))
    print(f"{len(judge.reference)} real images are the reference; text encoder {judge.clip.name}")
    n = max(260, len(args.classes))
    arrays = {
        "images": judge.real[:n],
        "labels": judge.labels[:n],
        "prompts": judge.prompts[:n],
    }  # for compare
    common.save_file(
        args.out / args.dataset / "compare" / "real.npz", lambda file: np.savez(file, **arrays)
    )


if __name__ == "__main__":
    common.cli(main)
