"""Draws the sample files of a run, and measures them: of every run of a data set, from its saved files alone.

Command   python evaluate.py --dataset mnist            all models; or name some: ... mnist a4_full cgan
Writes    metrics/fid_scores.csv, mse_diversity.csv and clip_sim_scores.csv of each run; prints them as one table
Metrics   FID (Heusel et al. 2017), precision (Kynkaanniemi et al. 2019) and coverage (Naeem et al. 2020) on the features
          of Inception v3, else of the embedded CLIP; MSE diversity; CLIP similarity; accuracy, read by the embedded CLIP
Floors    Each table holds the same of real images that are not the reference, of noise, and with wrong prompts.
"""

import argparse
import math
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import common
import tiny_clip

REFERENCE, K = 5000, 5  # real images at most; the neighbour whose distance is a real image's radius

# ── What a run draws ──


def heldout_scale(run: common.Run) -> float:
    """The guidance scale of held-out samples and of pictures of prompts."""
    return 1.0 if common.meaningless(run.args.script, "scale") else 2.0


def sample_files(run: common.Run) -> dict[Path, tuple]:
    """Each sample file of a run -> its templates (none for a script without text), guidance scale, number of images."""
    args, w = run.args, heldout_scale(run)
    trained, heldout = common.TRAIN_TEMPLATES[args.dataset], common.HELDOUT_TEMPLATES[args.dataset]
    if common.meaningless(args.script, "prompt"):
        return {run.images / "samples_w1.0.npz": ([], 1.0, args.samples)}
    files = {run.images / f"samples_w{w}.npz": (trained, w, args.samples) for w in args.scales}
    return files | {run.images / f"samples_heldout_w{w}.npz": (heldout, w, min(500, args.samples))}


def balanced_prompts(dataset: str, templates: list[str], n: int) -> tuple[list[str], torch.Tensor]:
    """n prompts round the classes and their phrasings -> prompts, labels int64 (n,); without templates "" and -1."""
    if not templates:
        return [""] * n, torch.full((n,), -1)
    texts = common.phrasings(dataset, templates)
    labels = torch.arange(n) % len(texts)
    return [texts[y][i // len(texts) % len(texts[y])] for i, y in enumerate(labels.tolist())], labels


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """images (n, 1, H, W) in [-1, 1] -> uint8 (n, H, W)."""
    return ((images[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()


def to_images(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (n, H, W) -> images (n, 1, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels)[:, None] / 127.5 - 1


def draw_all(run: common.Run, draw, prompts: list[str], scale: float, what: str) -> np.ndarray:
    """-> uint8 (n, 28, 28). The noise depends on --seed alone, so it is the same at every scale."""
    generator, parts = torch.Generator().manual_seed(run.args.seed), []
    with common.Progress(desc=what, total=len(prompts), **common.Progress.STYLE) as bar:
        for i in range(0, len(prompts), 100):
            parts.append(to_pixels(draw(prompts[i : i + 100], scale, generator)))
            bar.update(len(parts[-1]))
    return np.concatenate(parts)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory used so far, in MB: the GPU's, else this process's (nan where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def save_samples(run: common.Run, draw) -> None:
    """Write those sample files that are not there yet, and what they cost into performance.csv."""
    args, table = run.args, run.metrics / "performance.csv"
    log = common.read_csv(run.metrics / "loss.csv")
    steps = np.diff([0] + [int(row["step"]) for row in log])
    seconds = sum(n * args.batch_size / float(row["images_per_second"]) for n, row in zip(steps, log)) or math.nan
    rows = {row["scale"]: row for row in common.read_csv(table)}
    for path, (templates, scale, n) in sample_files(run).items():
        heldout = "heldout" in path.name
        if path.exists() and (heldout or str(scale) in rows):
            continue
        (prompts, labels), start = balanced_prompts(args.dataset, templates, n), time.perf_counter()
        pixels = draw_all(run, draw, prompts, scale, f"samples at scale {scale:g}")
        speed = n / (time.perf_counter() - start)
        if not heldout:
            rows[str(scale)] = {
                "parameters": run.config["parameters"],
                "train_seconds": round(seconds, 1),
                "train_images_per_second": round(args.train_steps * args.batch_size / seconds, 1),
                "scale": scale,
                "sample_images_per_second": round(speed, 1),
                "sample_steps": args.sample_steps,
                "peak_memory_mb": round(peak_memory_mb(args.device)),
                "device": args.device,
            }
            common.save_csv(table, list(rows.values()))
        arrays = {"images": pixels, "labels": labels.numpy(), "prompts": np.array(prompts)}
        common.save_file(path, lambda file, arrays=arrays: np.savez_compressed(file, **arrays))


# ── The metrics ──


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between the Gaussians of features a (n, d) and b (m, d), in float64: the FID's formula, Heusel et al. 2017 Eq. 6."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T  # AB has the eigenvalues of the symmetric root(A) B root(A)
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace)


def precision_coverage(real: np.ndarray, drawn: np.ndarray, k: int = K) -> tuple[float, float]:
    """Of features (n, d), (m, d): the share of drawn ones within some real one's distance to its k-th real neighbour,
    and the share of real ones with a drawn one within that distance."""
    real, drawn = torch.from_numpy(real), torch.from_numpy(drawn)
    radius = torch.cdist(real, real).kthvalue(k + 1, dim=1).values  # the nearest is the image itself
    inside = torch.cdist(real, drawn) <= radius[:, None]  # (n, m)
    return inside.any(0).float().mean().item(), inside.any(1).float().mean().item()


def mse_diversity(pixels: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Class -> mean squared difference of two of its images (N, H, W), over pixels from 0 to 1; classes of one left out."""
    result = {}
    for y in np.unique(labels):
        images = pixels[labels == y].reshape((labels == y).sum(), -1) / 255
        if len(images) > 1:  # the mean over all pairs is twice the variance
            result[int(y)] = float(2 * images.var(0, ddof=1).mean())
    return result


def wrong_prompts(labels: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Each image's prompt replaced by one of another class: the next in turn."""
    order, wrong = np.unique(labels), prompts.copy()
    for y, other in zip(order, np.roll(order, 1)):
        wrong[labels == y] = np.resize(prompts[labels == other], (labels == y).sum())
    return wrong


def clip_similarity(clip: tiny_clip.Clip, image_features: np.ndarray, prompts: np.ndarray) -> float:
    """Mean cosine between images, as rows of features of length 1, and their prompts."""
    texts, index = np.unique(prompts, return_inverse=True)
    return float((image_features * clip.encode_text(texts.tolist()).cpu().numpy()[index]).sum(1).mean())


# ── What sees the images ──


def inception_features(device: torch.device):
    """-> pixels uint8 (n, 28, 28) -> (n, 2048): torchvision's Inception v3 before its last layer. UserError without it."""
    from torchvision.models import Inception_V3_Weights, inception_v3

    url = Inception_V3_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.split("/")[-1]
    common.fetch(url, path, path.stem.split("-")[-1])
    try:
        net = inception_v3(weights=None, init_weights=False, transform_input=False)  # fed pixels in [-1, 1] instead
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except common.UNREADABLE as error:
        raise common.UserError(f"{path} is no Inception v3 of torchvision ({common.one_line(error)})") from None
    net.fc = torch.nn.Identity()
    net.eval().to(device)

    @torch.no_grad()
    def features(pixels: np.ndarray) -> np.ndarray:
        parts = []
        for part in to_images(pixels).to(device).split(50):
            large = F.interpolate(part, size=(299, 299), mode="bilinear", align_corners=False)
            parts.append(net(large.repeat(1, 3, 1, 1)).cpu())
        return torch.cat(parts).numpy()

    return features


def pick_extractor(name: str, tiny: tiny_clip.Clip):
    """name: auto, inception or tiny -> the extractor's name, a function from pixels (n, 28, 28) to features (n, d)."""
    if name != "tiny":
        try:
            return "inception_v3", inception_features(tiny.device)
        except common.UserError as error:
            if name != "auto":
                raise
            print(f"FID: {error}; on the features of the embedded CLIP instead", file=sys.stderr)
    return "tiny_clip", lambda pixels: tiny.encode_image(to_images(pixels)).cpu().numpy()


# ── Every file ──


def load_samples(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> images uint8 (N, 28, 28), labels (N,), prompts (N,); UserError if the file holds something else."""
    try:
        with np.load(path) as file:
            images, labels, prompts = file["images"], file["labels"], file["prompts"]
    except (*common.UNREADABLE, zipfile.BadZipFile) as error:
        raise common.UserError(f"{path} is damaged ({common.one_line(error)}); delete it and run again") from None
    if (
        images.dtype != np.uint8
        or images.shape != (len(labels), 28, 28)
        or len(prompts) != len(labels)
        or not len(labels)
    ):
        raise common.UserError(
            f"{path} holds {images.dtype} {images.shape}, not uint8 (N, 28, 28); delete it and run again"
        )
    return images, labels, prompts


class Judge:
    """Measures images against the real ones of a data set: half of them are the reference, the rest calibrates."""

    def __init__(self, args: argparse.Namespace):
        images, labels, self.names, self.source = common.load_dataset(args.dataset, args.data_dir)
        self.tiny = tiny_clip.load_clip("tiny", args.device)
        self.clip = tiny_clip.load_clip(args.clip, args.device)
        self.extractor, self.features = pick_extractor(args.extractor, self.tiny)
        self.classes = tiny_clip.class_vectors(self.tiny, args.dataset).cpu().numpy()
        texts = common.phrasings(args.dataset, common.TRAIN_TEMPLATES[args.dataset])
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        half = min(REFERENCE, len(images) // 2)
        self.labels = labels[order[half:]].numpy()
        self.pixels = to_pixels(images[order[half:]])  # neither part of the reference nor sorted
        self.prompts = np.array([texts[y][i % len(texts[y])] for i, y in enumerate(self.labels)])
        self.reference = self.features(to_pixels(images[order[:half]]))
        self.diversity = mse_diversity(self.pixels, self.labels)

    def measure(self, pixels: np.ndarray, labels: np.ndarray, prompts: np.ndarray) -> dict:
        """Every metric of images uint8 (n, 28, 28); labels -1 are images nobody asked for: their class is read."""
        seen, tiny = self.features(pixels), self.tiny.encode_image(to_images(pixels)).cpu().numpy()
        read, asked = (tiny @ self.classes.T).argmax(1), labels.min() >= 0
        precision, coverage = precision_coverage(self.reference, seen)
        diversity = mse_diversity(pixels, labels if asked else read)
        share = {y: value / self.diversity[y] for y, value in diversity.items() if y in self.diversity}
        row = {
            "fid": 1000 * frechet_distance(seen, self.reference)
            if self.extractor == "tiny_clip"
            else frechet_distance(seen, self.reference),
            "precision": precision,
            "coverage": coverage,
            "mse_diversity": np.mean([*diversity.values()]),
            "of_real": np.mean([*share.values()]),
            "least_of_real": min(share.values()),
            "least_class": self.names[min(share, key=share.get)],
        }
        if asked:
            same = self.clip is self.tiny or (self.clip.crc32 == self.tiny.crc32)
            vision = tiny if same else self.clip.encode_image(to_images(pixels)).cpu().numpy()
            row["clip_similarity"] = clip_similarity(self.clip, vision, prompts)
            row["with_wrong_prompts"] = clip_similarity(self.clip, vision, wrong_prompts(labels, prompts))
            row["accuracy"] = (read == labels).mean()
        return row
