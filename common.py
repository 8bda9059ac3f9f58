"""The one door to all that the models' scripts share.

Written here: the noise schedule, and FID's two halves: Inception's features and the distance.
Handed on from kit/, by name: flags, data, phrasings, text encoder, the run and its pictures.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kit.base import Progress  # a bar that counts images
from kit.base import UserError  # what the user can mend: one line, exit code 2
from kit.base import cli  # runs main(), and makes that line and exit code of a UserError
from kit.base import load_tensors  # what torch.save() wrote, its checksums compared
from kit.base import reading  # a damaged file, in this block, becomes a UserError
from kit.datasets import HELDOUT_TEMPLATES  # phrasings that nothing is trained on, by data set
from kit.datasets import TRAIN_TEMPLATES  # the others, such as "a drawing of a {}"
from kit.downloads import fetch  # downloads a file once and checks its SHA-256
from kit.encoders import load_clip  # OpenAI's CLIP, or the small one of kit/tiny_clip.py
from kit.flags import Config  # the flags of every script: dataset, out, seed, samples, ...
from kit.flags import flag  # a field of a Config: default, help, least and most
from kit.images import load_dataset  # pixels uint8 (N, 28, 28), labels, where they come from
from kit.images import to_images  # pixels uint8 (n, 28, 28) -> float32 (n, 1, 28, 28) in [-1, 1]
from kit.muon import Muon  # the optimiser: for convolutions Muon, for the rest AdamW
from kit.pictures import save_outputs  # draws a run's sample files and pictures
from kit.run import Run  # results/<dataset>/<script>/: data, steps, checkpoints
from kit.samples import complete  # whether all of that is on disk
from kit.samples import noise  # normal noise, each image's from a generator of its own

# ── Noise schedule ──

T = 1000  # diffusion steps


def cosine_alphas_bar(device: torch.device | str = "cpu") -> torch.Tensor:
    """float32 (T + 1,), from 1 (clean) down to about 0 (noise); DDIM's alpha.

    Nichol & Dhariwal 2021 Eq. 17, its betas clipped at 0.999 as there.
    """
    t = torch.arange(T + 1, dtype=torch.float64)
    f = torch.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2
    alphas = (f[1:] / f[:-1]).clamp(min=0.001)
    return torch.cat([torch.ones(1), alphas.cumprod(0)]).float().to(device)


# ── FID ──

INCEPTION = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"


def inception_features(device: torch.device):
    """-> a function: pixels uint8 (n, 28, 28) -> features (n, 2048).

    Of torchvision's Inception v3 before its last layer, an ImageNet network; papers use a port of
    TensorFlow's, so their numbers are others. UserError if its weights cannot be had.
    """
    from torchvision.models import inception_v3  # not at the top: the models' scripts need none

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION.split("/")[-1]
    if str(path).startswith("~"):
        raise UserError("Inception v3: this account has no home folder to keep it in")
    path = fetch(INCEPTION, path, path.stem.split("-")[-1])
    # Without transform_input, since it is fed pixels in [-1, 1], which it was trained on.
    net = inception_v3(weights=None, init_weights=False, transform_input=False)
    with reading(path, "delete it: it is no Inception v3 of torchvision"):
        net.load_state_dict(load_tensors(path))
    net.fc = torch.nn.Identity()
    net.eval().to(device)

    @torch.no_grad()
    def features(pixels: np.ndarray) -> np.ndarray:
        images, parts = to_images(torch.from_numpy(pixels)).expand(-1, 3, -1, -1), []
        for batch in Progress(images.split(50), "Inception", leave=False):
            batch = F.interpolate(batch.to(device), 299, mode="bilinear")  # (50, 3, 299, 299)
            parts.append(net(batch).cpu())
        return torch.cat(parts).numpy()

    return features


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between Gaussians fitted to features (n, d) and (m, d): FID, Heusel et al. 2017 Eq. 6.

    In float64.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a = np.atleast_2d(np.cov(a, rowvar=False))
    cov_b = np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    # root(cov_a cov_b) has the same trace as root(root(cov_a) cov_b root(cov_a)).
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(means + np.trace(cov_a) + np.trace(cov_b) - 2 * trace)
