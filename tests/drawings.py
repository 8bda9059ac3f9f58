"""The drawings of docs/1-diffusion.md and 2-text-and-guidance.md, made from the code they explain.

Command   python tests/drawings.py            into assets/
"""

import math

import numpy as np
import torch
from conftest import ROOT
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from scipy.stats import norm

import a0_uncond
import a4_full
import common
from kit.data import embedded_mnist, to_pixels
from kit.pictures import COLORS, save_figure, use_plain_style

BLUE, RED, GREEN = COLORS[:3]
SHAPES = {  # where the features of the U-Net are shown: module -> its place (x, y), its text
    "inp": ((0, 3), "convolution"), "down1": ((0, 2), "block"), "coarser": ((0, 1), "stride 2"),
    "middle1": ((0, 0), "block"), "middle2": ((1, 0), "block"), "finer": ((1, 1), "1 x 1"),
    "up1": ((1, 2), "block"), "out": ((1, 3), "convolution"),
}  # fmt: skip


def rotation() -> Figure:
    """x_t = cos(theta) x_0 + sin(theta) eps and v, its derivative, with a digit on the way."""
    figure = Figure(figsize=(6, 5.4))
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    arc, at = np.linspace(0, math.pi / 2, 100), math.radians(40)
    axes.plot(np.cos(arc), np.sin(arc), color="0.6")
    torch.manual_seed(0)
    pixels, labels = embedded_mnist("train")
    x_0 = common.to_images(pixels[labels == 3][:1])
    eps = torch.randn_like(x_0)
    for theta in np.linspace(0, math.pi / 2, 5):
        x_t = math.cos(theta) * x_0 + math.sin(theta) * eps
        x, y = 1.2 * math.cos(theta), 1.2 * math.sin(theta)
        place = (x - 0.11, x + 0.11, y - 0.11, y + 0.11)
        axes.imshow(to_pixels(x_t)[0], cmap="gray", vmin=0, vmax=255, extent=place, zorder=2)
    x, y = math.cos(at), math.sin(at)
    arrow = {"arrowstyle": "-|>", "lw": 2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (x, y), (0, 0), arrowprops=arrow | {"color": BLUE})
    axes.annotate("", (x - 0.5 * y, y + 0.5 * x), (x, y), arrowprops=arrow | {"color": RED})
    axes.plot([x, x], [0, y], ":", color="0.4")
    axes.plot([0, x], [y, y], ":", color="0.4")
    texts = {  # text -> where
        "$x_t$": (0.36, 0.38), "$v$": (0.62, 0.93), r"$\theta$": (0.2, 0.06),
        r"$\cos\theta\ x_0$": (0.24, -0.08), r"$\sin\theta\ \varepsilon$": (-0.3, 0.62),
        "image, $t = 0$": (0.86, -0.24), "noise, $t = T$": (-0.28, 1.38),
    }  # fmt: skip
    for text, where in texts.items():
        axes.text(*where, text, fontsize=14, parse_math=True)
    axes.plot(0.17 * np.cos(arc * 40 / 90), 0.17 * np.sin(arc * 40 / 90), color="0.4")
    axes.set(xlim=(-0.35, 1.4), ylim=(-0.3, 1.48), aspect="equal")
    axes.axis("off")
    return figure


def levels() -> Figure:
    """How often training draws a log-SNR, and lambda(t) with the steps of the sampler."""
    alphas_bar = common.cosine_alphas_bar()
    lambdas = (alphas_bar / (1 - alphas_bar).clamp(min=1e-20)).log() / 2
    drawn, film = [], []

    def network(x_t, t):  # it only keeps the levels that it is asked for
        drawn.append(t)
        return x_t

    torch.manual_seed(0)
    for _ in range(200):
        a0_uncond.diffusion_loss(network, torch.zeros(1000, 1, 1, 1), alphas_bar)
    sampled, start = a0_uncond.Config().sample_steps, torch.zeros(1, 1, 28, 28)
    a0_uncond.sample(lambda x_t, t: x_t, start, sampled, 1.0, [torch.Generator()], film)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    style = {"bins": 80, "range": (-5, 5), "density": True}
    left.hist(lambdas[torch.cat(drawn)].numpy(), color=BLUE, **style)
    left.hist(lambdas[1:].numpy(), histtype="step", color="0.3", **style)
    left.text(1.2, 0.55, "blue: training\nline: evenly in t")
    left.set(xlabel="lambda: noisy (left) to clean (right)", ylabel="density in training")
    right.plot(range(1, 1001), lambdas[1:], color=BLUE)
    times = [step[0] for step in film[:-1]]
    right.plot(times, lambdas[times], "o", color=RED, markersize=5)
    right.set(xlabel="t", ylabel="lambda", ylim=(-10.5, 6))
    right.text(330, 3, f"{sampled} steps of the sampler", color=RED)
    return figure


def network() -> Figure:
    """The U-Net, with the shape that each part really returns."""
    model, shapes = a0_uncond.UNet(a0_uncond.Config()), {}
    for name in SHAPES:

        def keep(module, inputs, output, name=name):
            shapes[name] = " x ".join(map(str, output.shape[1:]))

        model.get_submodule(name).register_forward_hook(keep)
    model(torch.zeros(1, 1, 28, 28), torch.ones(1))
    figure = Figure(figsize=(5.4, 4.8))
    axes = figure.add_axes((0, 0, 1, 1))
    boxes = {name: (place, text, shapes[name]) for name, (place, text) in SHAPES.items()}
    boxes = {"x_t": ((0, 4), "folded", "4 x 14 x 14"), **boxes}
    boxes["v"] = (1, 4), "unfolded", "1 x 28 x 28"
    arrow = {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0}
    places = [place for place, _, _ in boxes.values()]
    for (x, y), after in zip(places, places[1:]):  # behind the boxes
        axes.annotate("", (after[0] - 0.31 * (after[0] - x), after[1] - 0.32 * (after[1] - y)),
                      (x, y), arrowprops=arrow, zorder=1)  # fmt: skip
    for name, ((x, y), text, shape) in boxes.items():
        style = {"boxstyle": "round,pad=0.02", "fc": "white", "ec": BLUE, "zorder": 2}
        axes.add_patch(FancyBboxPatch((x - 0.28, y - 0.3), 0.56, 0.6, **style))
        axes.text(x, y, f"{name}: {text}\n{shape}", ha="center", va="center", fontsize=10)
    axes.annotate("", (0.69, 2), (0.31, 2), arrowprops=arrow | {"color": RED})
    axes.text(0.5, 2.12, "joined", color=RED, ha="center", fontsize=10)
    for x in (0, 1):
        for y in (0, 2):  # the blocks
            axes.annotate("", (x + 0.31 - 0.62 * x, y + 0.15 - 0.15 * y), (0.5, 1),
                          arrowprops=arrow | {"color": GREEN}, zorder=1)  # fmt: skip
    axes.text(0.5, 1, "t; from a1 on\nthe text too", color=GREEN, ha="center", va="center",
              fontsize=10, bbox={"fc": "white", "ec": "white"})  # fmt: skip
    axes.set(xlim=(-0.34, 1.34), ylim=(-0.4, 4.4))
    axes.axis("off")
    return figure


def gaussian_v(x_t, t, mean: float, sd: float):
    """The exact v where the data are N(mean, sd^2)."""
    a = common.cosine_alphas_bar()[t].view(-1, 1, 1, 1)
    x0_hat = mean + sd**2 * a.sqrt() / (a * sd**2 + 1 - a) * (x_t - a.sqrt() * mean)
    return (a.sqrt() * x_t - x0_hat) / (1 - a).sqrt()


def two_gaussians() -> Figure:
    """N(1, 0.5) given the text, N(0, 1) without: what scale 2 aims at, what a4's sampler draws."""

    def guided(x_t, t):  # of a fourth of x, so that the range of pixels does not matter
        v_uncond, v_cond = gaussian_v(x_t, t, 0.0, 0.25), gaussian_v(x_t, t, 0.25, 0.125)
        return v_uncond + 2 * (v_cond - v_uncond)

    generators = [torch.Generator().manual_seed(i) for i in range(200)]
    x_T = common.noise(generators, 1, 28, 28)
    drawn = 4 * a4_full.sample(guided, x_T, 200, 0.0, generators).flatten().numpy()
    x = np.linspace(-2.5, 3, 500)
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(x, norm.pdf(x, 0, 1), color="0.5", label="without text: mean 0, deviation 1")
    axes.plot(x, norm.pdf(x, 1, 0.5), color=BLUE, label="with text: mean 1, deviation 0.5")
    label = "what scale 2 aims at: mean 1.14, deviation 0.38"
    axes.plot(x, norm.pdf(x, 8 / 7, 7**-0.5), color=GREEN, label=label)
    label = f"what it draws: mean {drawn.mean():.2f}, deviation {drawn.std():.2f}"
    axes.hist(drawn, 100, density=True, color=RED, alpha=0.4, label=label)
    axes.set(xlabel="x", ylabel="density", xlim=(-2.5, 3))
    figure.legend(loc="outside upper center", fontsize=10, ncols=2)
    return figure


if __name__ == "__main__":
    use_plain_style()
    for draw in (rotation, levels, network, two_gaussians):
        print(save_figure(ROOT / "assets" / f"{draw.__name__}.png", draw(), dpi=150))
