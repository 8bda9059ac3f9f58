"""Metrics of images beside FID, a few lines each."""

import numpy as np
import torch


def precision_coverage(real: np.ndarray, drawn: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Features (n, d), (m, d) -> two shares, of drawn images and of real ones.

    Precision (Kynkäänniemi et al. 2019): of drawn images that lie nearer to a real one than its
    k-th real neighbour does. Coverage (Naeem et al. 2020): of real images with a drawn one so near.
    """
    real, drawn = torch.from_numpy(real), torch.from_numpy(drawn)
    radius = torch.cdist(real, real).kthvalue(k + 1).values  # the nearest is the image itself
    inside = torch.cdist(real, drawn) <= radius[:, None]  # (n, m)
    return inside.any(0).float().mean().item(), inside.any(1).float().mean().item()


def mse_diversity(pixels: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Class -> mean squared difference of two of its images, over pixels from 0 to 1.

    A class of one image has none.
    """
    result = {}
    for label in np.unique(labels):
        group = pixels[labels == label]
        if len(group) > 1:  # the mean over all pairs is twice the variance
            result[int(label)] = float(2 * group.var(0, ddof=1).mean() / 255**2)
    return result


def wrong_prompts(labels: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Each image's prompt replaced by one of another class, the next in turn."""
    order, wrong = np.unique(labels), prompts.copy()
    for label, other in zip(order, np.roll(order, 1)):
        mine = labels == label
        wrong[mine] = np.resize(prompts[labels == other], mine.sum())
    return wrong
