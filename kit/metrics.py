"""Metrics of images beside FID, a few lines each."""

import math

import numpy as np
import torch


def apply(function, key: str, pixels: np.ndarray):
    """function(pixels), cached by evaluate.py under key, which stands for function's network."""
    return function(pixels)


def round_the_classes(pixels, labels, classes: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """As many images of each class, at most so many in all, in turn of the classes.

    Of a class evenly spread over its images, the even ones first, each half in random order: so
    the two halves are alike, whatever the order in the data set means.
    """
    each = min(most // classes, labels.bincount(minlength=classes).min().item())
    generator, chosen = torch.Generator().manual_seed(0), []
    for label in range(classes):
        group = (labels == label).nonzero()[:, 0]
        group = group[torch.linspace(0, len(group) - 1, each).round().long()]
        halves = group[::2], group[1::2]
        order = [half[torch.randperm(len(half), generator=generator)] for half in halves]
        chosen.append(torch.cat(order))
    chosen = torch.stack(chosen, 1).flatten()
    return pixels[chosen].numpy(), labels[chosen].numpy()


def kid(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Kernel distance of features (n, d), (m, d): KID (Binkowski et al. 2018), standard error.

    The unbiased squared MMD (Gretton et al. 2012 Eq. 3) with the kernel (x y / d + 1)^3: unlike FID
    its mean does not depend on how many images there are, and it may fall below zero. The error is
    that of a U-statistic to first order; where the true distance is zero, it is too large by 1.4.
    """
    n, m = len(a), len(b)
    a, b = (torch.from_numpy(x).double() / math.sqrt(x.shape[1]) for x in (a, b))
    within_a, within_b, between = (a @ a.T + 1) ** 3, (b @ b.T + 1) ** 3, (a @ b.T + 1) ** 3
    mean_a = (within_a.sum(1) - within_a.diag()) / (n - 1)  # (n,): an image against its own kind
    mean_b = (within_b.sum(1) - within_b.diag()) / (m - 1)
    value = mean_a.mean() + mean_b.mean() - 2 * between.mean()
    variance = (mean_a - between.mean(1)).var() / n + (mean_b - between.mean(0)).var() / m
    return value.item(), 2 * variance.sqrt().item()


def density_coverage(real: np.ndarray, drawn: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Of as many real as drawn features (n, d): Naeem et al. 2020 Eq. 3, 4.

    A ball about each real image reaches to its k-th real neighbour. Density: how many balls hold a
    drawn image, over k. Coverage: the share of balls that hold at least one.
    """
    real, drawn = torch.from_numpy(real).double(), torch.from_numpy(drawn).double()
    radius = torch.cdist(real, real).kthvalue(k + 1).values  # the nearest is the image itself
    inside = torch.cdist(real, drawn) < radius[:, None]  # (n, n)
    return inside.sum(0).double().mean().item() / k, inside.any(1).double().mean().item()


def mse_diversity(pixels: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Class of 2 images or more -> mean squared difference of two, over pixels from 0 to 1."""
    result = {}
    for label in np.unique(labels):
        group = pixels[labels == label]
        if len(group) > 1:  # the mean over all pairs is twice the variance
            result[int(label)] = float(2 * group.var(0, ddof=1).mean() / 255**2)
    return result


def similarity(images: np.ndarray, texts: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cosine of images and their prompts, and of images and the prompts of all other classes.

    images, texts: CLIP's embeddings (n, dim), rows of length 1. labels: the class asked for (n,).
    """
    classes, index = np.unique(labels, return_inverse=True)
    means = np.stack([texts[labels == label].mean(0) for label in classes])  # (C, dim)
    of_class = images @ means.T  # (n, C): the mean cosine with the prompts of each class
    own = of_class[np.arange(len(images)), index]
    others = (of_class.sum(1) - own) / (len(classes) - 1) if len(classes) > 1 else own * np.nan
    return float((images * texts).sum(1).mean()), float(others.mean())


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share that was counted on n: Wilson 1927."""
    z = 1.959964
    middle = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


def nearest(pixels: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each image uint8 (n, 28, 28) its two nearest among others -> indices, distances (n, 2).

    A distance is the root of the mean squared difference, over pixels from 0 to 1.
    """
    flat, best = torch.from_numpy(pixels).flatten(1).float(), []
    for start in range(0, len(others), 10_000):  # so much at a time, since there may be millions
        part = torch.from_numpy(others[start : start + 10_000]).flatten(1).float()
        squares = (part**2).sum(1) - 2 * flat @ part.T  # without what all have in common
        best.append(squares.topk(min(2, len(part)), largest=False).indices + start)
    best = torch.cat(best, 1).numpy()  # (n, candidates); now exactly, without rounding
    distances = np.empty(best.shape)
    for column, index in enumerate(best.T):
        difference = pixels.astype(np.float64) - others[index]
        distances[:, column] = np.sqrt((difference**2).mean((1, 2))) / 255
    order = distances.argsort(1, kind="stable")[:, :2]
    return np.take_along_axis(best, order, 1), np.take_along_axis(distances, order, 1)


def copied(distances: np.ndarray) -> float:
    """Share of images (n, 2) nearer to one training image than to a third of the next.

    Yoon et al. 2023.
    """
    first, second = distances.T
    return float(((first == 0) | (first < second / 3)).mean())


def confusion(asked: np.ndarray, read: np.ndarray, classes: int) -> np.ndarray:
    """-> (classes, classes), a row for each class asked for: the share of it read as each class."""
    counts = np.bincount(asked * classes + read, minlength=classes**2).reshape(classes, classes)
    return counts / counts.sum(1, keepdims=True).clip(1)


def obedience(asked: np.ndarray, states: np.ndarray, right: np.ndarray) -> dict[tuple, dict]:
    """What prompts asked for -> shares of images that show it.

    asked, states (n, attributes): -1 low, 1 high; asked 0: nothing. right (n,): whether the class
    is right. as_asked: all attributes are as asked; single: each alone; everything: the class too,
    CoInD's conformity score (Gaudi et al. 2025); ..without_asking: the same in plain prompts.
    """
    result, plain = {}, (asked == 0).all(1)
    for combination in dict.fromkeys(map(tuple, asked.tolist())):
        rows, asks = (asked == combination).all(1), np.array(combination) != 0
        single = states == combination  # (n, attributes)
        fits = single[:, asks].all(1)
        result[combination] = {
            "n": int(rows.sum()),
            "as_asked": fits[rows].mean(),
            "single": np.where(asks, single[rows].mean(0), np.nan),
            "accuracy": right[rows].mean(),
            "everything": (fits & right)[rows].mean(),
            "without_asking": fits[plain].mean(),
            "everything_without_asking": (fits & right)[plain].mean(),
        }
    return result
