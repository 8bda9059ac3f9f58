"""Metrics of images beside FID, a few lines each."""

import math

import numpy as np
import torch


def apply(function, key: str, pixels: np.ndarray):
    """function(pixels), cached by evaluate.py under key, which stands for function's network."""
    return function(pixels)


def round_the_classes(pixels, labels, classes: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """As many images of each class, at most `most` in all, in turn; its two halves are alike."""
    each = min(most // classes, labels.bincount(minlength=classes).min().item())
    generator, chosen = torch.Generator().manual_seed(0), []
    for label in range(classes):
        group = (labels == label).nonzero()[:, 0]
        group = group[torch.linspace(0, len(group) - 1, each).round().long()]  # evenly spread
        for half in (group[::2], group[1::2]):
            chosen.append(half[torch.randperm(len(half), generator=generator)])
    chosen = torch.cat(chosen).view(classes, each).T.flatten()
    return pixels[chosen].numpy(), labels[chosen].numpy()


def kid(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """KID (Binkowski et al. 2018) of features (n, d) and (m, d), and its standard error.

    The unbiased squared MMD (Gretton et al. 2012 Eq. 3) with the kernel (x y / d + 1)^3. The error
    is that of a U-statistic to first order: 1.4 times too large where the true distance is zero.
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
    """Naeem et al. 2020 Eq. 3, 4, for as many real as drawn features (n, d).

    A ball about each real image reaches to its k-th real neighbour. Density: how many balls hold a
    drawn image, divided by k. Coverage: the share of balls that hold at least one.
    """
    real, drawn = torch.from_numpy(real).double(), torch.from_numpy(drawn).double()
    radius = torch.cdist(real, real).kthvalue(k + 1).values  # the nearest is the image itself
    inside = torch.cdist(real, drawn) < radius[:, None]  # (n, n)
    return inside.sum(0).double().mean().item() / k, inside.any(1).double().mean().item()


def components(reference: np.ndarray, count: int = 64):
    """-> a function: pixels (n, 28, 28) -> their first principal components on reference."""
    flat = reference.reshape(len(reference), -1) / 255
    basis = np.linalg.eigh(np.cov(flat, rowvar=False))[1][:, -count:]  # (784, count)
    return lambda pixels: (pixels.reshape(len(pixels), -1) / 255 - flat.mean(0)) @ basis


def standardised(reference: np.ndarray):
    """-> a function: values (n, d) in standard deviations of reference; nan counts as 0."""
    known = np.nan_to_num(reference)
    return lambda values: (np.nan_to_num(values) - known.mean(0)) / (known.std(0) + 1e-9)


def balanced(labels: np.ndarray) -> np.ndarray:
    """Rows of images, equally many of each class that occurs: repeated where there are too few."""
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([np.resize(group, len(labels) // len(groups)) for group in groups])


def mse_diversity(pixels: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Class of 2 images or more -> mean squared difference of two, over pixels from 0 to 1."""
    groups = {int(label): pixels[labels == label] for label in np.unique(labels)}
    variances = {x: group.var(0, ddof=1).mean() for x, group in groups.items() if len(group) > 1}
    return {x: float(2 * variance / 255**2) for x, variance in variances.items()}  # over all pairs


def similarity(images: np.ndarray, texts: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cosine of embeddings (n, dim) of images with their prompts, and with other classes'."""
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
    """Each image's two nearest among others -> indices, distances (n, 2): RMS, pixels 0 to 1."""
    flat, best = torch.from_numpy(pixels).flatten(1).float(), []
    for start in range(0, len(others), 10_000):  # there may be millions
        part = torch.from_numpy(others[start : start + 10_000]).flatten(1).float()
        squares = (part**2).sum(1) - 2 * flat @ part.T  # without what all have in common
        best.append(squares.topk(min(2, len(part)), largest=False).indices + start)
    best = torch.cat(best, 1).numpy()  # (n, candidates); now their distances in double precision
    exact = pixels.astype(np.float64)
    squares = [((exact - others[index]) ** 2).mean((1, 2)) for index in best.T]
    distances = np.sqrt(np.stack(squares, 1)) / 255
    order = distances.argsort(1, kind="stable")[:, :2]
    return np.take_along_axis(best, order, 1), np.take_along_axis(distances, order, 1)


def copied(distances: np.ndarray) -> float:
    """Share of images 3 times nearer to one training image than to the next (Yoon et al. 2023)."""
    first, second = distances.T
    return float(((first == 0) | (first < second / 3)).mean())


def confusion(asked: np.ndarray, read: np.ndarray, classes: int) -> np.ndarray:
    """-> (classes, classes), a row for each class asked for: the share of it read as each class."""
    counts = np.bincount(asked * classes + read, minlength=classes**2).reshape(classes, classes)
    return counts / counts.sum(1, keepdims=True).clip(1)


def obedience(asked: np.ndarray, states: np.ndarray, right: np.ndarray) -> dict[tuple, dict]:
    """What prompts asked for -> shares of images that show it; asked, states: -1 low, 1 high, 0.

    single: each attribute alone; everything: the class too, CoInD's conformity score (Gaudi et al.
    2025); without_asking: the highest share among prompts that ask for one word less, or nothing.
    """
    result, right = {}, right.astype(bool)
    groups = {x: (asked == x).all(1) for x in dict.fromkeys(map(tuple, asked.tolist()))}
    for combination, rows in groups.items():
        asks = np.array(combination) != 0
        single = states == combination  # (n, attributes)
        fits = single[:, asks].all(1)
        less = {x for x in groups if all(a in (0, b) for a, b in zip(x, combination))}
        others = [groups[x] for x in less - {combination}] or [rows]
        result[combination] = {
            "n": int(rows.sum()),
            "as_asked": fits[rows].mean(),
            "single": np.where(asks, single[rows].mean(0), np.nan),
            "accuracy": right[rows].mean(),
            "everything": (fits & right)[rows].mean(),
            "without_asking": max(fits[x].mean() for x in others),
            "everything_without_asking": max((fits & right)[x].mean() for x in others),
        }
    return result
