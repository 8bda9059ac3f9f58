"""The only module of this project that the scripts import: noise schedule, FID, parts of kit/."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kit.clip import load_clip  # OpenAI's CLIP, or the small one from kit/tiny_clip.py
from kit.config import Config  # the flags that all scripts share: dataset, out, seed, ...
from kit.data import to_images  # pixels uint8 (n, 28, 28) -> float32 (n, 1, 28, 28) in [-1, 1]
from kit.files import download, load_tensors, progress, reading
from kit.muon import Muon  # the optimiser: Muon for convolutions, AdamW for the rest
from kit.pictures import complete, save_outputs  # is everything saved? save samples and pictures
from kit.run import Run  # results/<dataset>/<script>/: data, training steps, checkpoints
from kit.samples import noise  # Gaussian noise, with one generator per image

T = 1000  # diffusion steps
INCEPTION = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"


def cosine_alphas_bar(device: torch.device | str = "cpu") -> torch.Tensor:
    """The cosine schedule: float32 (T + 1,), from 1 (clean) to about 0 (noise); DDIM's alpha."""
    t = torch.arange(T + 1, dtype=torch.float64)
    f = torch.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2  # Nichol & Dhariwal 2021 Eq. 17
    alphas = (f[1:] / f[:-1]).clamp(min=0.001)  # betas of at most 0.999, as in the paper
    return torch.cat([torch.ones(1), alphas.cumprod(0)]).float().to(device)


def inception_features(device: torch.device):
    """-> a function: pixels uint8 (n, 28, 28) -> features (n, 2048), before the last layer."""
    from torchvision.models import inception_v3  # slow to import, and needed here only

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION.split("/")[-1]
    path = download(INCEPTION, path, path.stem.split("-")[-1])
    # No transform_input: the pixels are in [-1, 1] already, as in its training.
    net = inception_v3(weights=None, init_weights=False, transform_input=False)
    with reading(path, "delete it: it is not torchvision's Inception v3"):
        net.load_state_dict(load_tensors(path))
    net.fc = torch.nn.Identity()
    net.eval().to(device)

    @torch.no_grad()
    def features(pixels: np.ndarray) -> np.ndarray:
        images, parts = to_images(torch.from_numpy(pixels)).expand(-1, 3, -1, -1), []
        for batch in progress(images.split(50), desc="Inception", leave=False):
            batch = F.interpolate(batch.to(device), 299, mode="bilinear")  # (50, 3, 299, 299)
            parts.append(net(batch).cpu())
        return torch.cat(parts).numpy()

    return features


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """FID of features (n, d), (m, d): distance of fitted Gaussians, Heusel et al. 2017 Eq. 6."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    # root(cov_a cov_b) has the same trace as root(root(cov_a) cov_b root(cov_a)).
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(means + np.trace(cov_a) + np.trace(cov_b) - 2 * trace)
