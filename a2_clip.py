"""A2: CLIP. A pretrained text encoder turns the sentence into the conditioning vector.

Idea      CLIP has learned which sentences mean the same: held-out phrasings land near trained ones.
Changed   Against a1_cond.py: CLIP's text embedding instead of the bag of words. (The small CLIP
          was trained among random words; so trained, the bag is no worse: docs/5-results.md.)
Papers    DDPM (Ho et al. 2020), improved DDPM (Nichol & Dhariwal 2021),
          DPM-Solver++ (Lu et al. 2022), v-prediction (Salimans & Ho 2022),
          adaptive group norm (Dhariwal & Nichol 2021), CLIP (Radford et al. 2021).
Commands  python a2_clip.py --dataset mnist
          python a2_clip.py --prompt "a thick seven leaning left" --n 16
Result    95.7% ± 0.6% right, in held-out phrasings 95.9% ± 0.7%; FID 0.52 ± 0.01
          (right: the digit asked for, as judged; five seeds: docs/5-results.md)
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

import common  # a file of this repository; it needs the folder kit/ beside it
from common import T

# ── Choices ───────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Config(common.Config):
    """The choices of this script: each field is a flag (--train-steps), its comment the help."""

    train_steps: int = 4600  # optimiser steps
    batch_size: int = 64  # images per step
    lr: float = 5e-3  # peak learning rate of all weights except the convolutions'
    muon_lr: float = 0.02  # peak learning rate of the convolutions, which Muon trains
    widths: tuple[int, int] = (32, 64)  # channels at 14 x 14 and at 7 x 7; multiples of 8
    patch: Literal[1, 2, 7, 14] = 2  # side in pixels of the squares that are folded into channels
    sample_steps: int = 18  # sampling steps, from noise to an image
    eta: float = 1.0  # noise added while sampling: 0 none, 1 as much as DDPM
    prompt: str | None = None  # generate images of this, for example "a thick seven leaning left"
    n: int = 16  # with --prompt: how many images
    clip: str = "auto"  # tiny, ViT-B/32 or a file; auto: ViT-B/32, or tiny if unavailable


# ── Network ───────────────────────────────────────────────────────────────────────────────────────


class ResBlock(nn.Module):
    """(B, c_in, H, W) -> (B, c_out, H, W), modulated by the condition: adaptive group norm."""

    def __init__(self, c_in: int, c_out: int, width: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # each block starts as its skip alone

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        modulation = self.modulation(condition)[:, :, None, None]  # (B, 2 c_out, 1, 1)
        gain, shift = modulation.chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + gain) + shift))
        return self.skip(x) + h


class UNet(nn.Module):
    """Predicts v from x_t (B, 1, 28, 28), t (B,) in 1..T and text (B, dim)."""

    def __init__(self, config: Config, text_dim: int):
        super().__init__()
        c1, c2 = config.widths
        width = 2 * c2
        self.time = TimeEmbedding(width)
        self.text = nn.Sequential(nn.Linear(text_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("text_mean", torch.zeros(text_dim))  # over all training sentences
        self.register_buffer("text_std", torch.ones(()))
        self.patch = config.patch
        self.inp = nn.Conv2d(self.patch**2, c1, 3, padding=1)
        self.down1 = ResBlock(c1, c1, width)
        self.coarser = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.middle1 = ResBlock(c2, c2, width)
        self.middle2 = ResBlock(c2, c2, width)
        self.finer = nn.Conv2d(c2, c1, 1)
        self.up1 = ResBlock(2 * c1, c1, width)
        self.norm = nn.GroupNorm(8, c1)
        self.out = nn.Conv2d(c1, self.patch**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        text = (text - self.text_mean) / self.text_std  # mean 0, entries of size about 1
        condition = F.silu(self.time(t) + self.text(text))  # (B, width)
        h1 = self.inp(F.pixel_unshuffle(x_t, self.patch))  # (B, c1, 14, 14)
        h1 = self.down1(h1, condition)
        h = self.middle1(self.coarser(h1), condition)  # (B, c2, 7, 7)
        h = self.finer(self.middle2(h, condition))  # (B, c1, 7, 7)
        h = torch.cat([F.interpolate(h, scale_factor=2), h1], dim=1)  # (B, 2 c1, 14, 14)
        h = self.out(F.silu(self.norm(self.up1(h, condition))))  # (B, 4, 14, 14)
        return F.pixel_shuffle(h, self.patch)  # (B, 1, 28, 28)


# ── Conditioning ──────────────────────────────────────────────────────────────────────────────────


class TimeEmbedding(nn.Module):
    """t (B,) in 1..T -> (B, width): sinusoids (Vaswani et al. 2017), then a small network."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        k = torch.arange(32, device=t.device)
        angles = t[:, None] * torch.exp(-math.log(10000) * k / 32)  # (B, 32)
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=1))


# ── Loss ──────────────────────────────────────────────────────────────────────────────────────────


def diffusion_loss(model, x_0: torch.Tensor, alphas_bar: torch.Tensor) -> torch.Tensor:
    """The mean squared error of v = model(x_t, t) over images x_0 (B, 1, 28, 28) in [-1, 1].

    v mixes image and noise so that both can be recovered from v and x_t at any t:
    x_0 = sqrt(a) x_t - sqrt(1 - a) v and eps = sqrt(1 - a) x_t + sqrt(a) v,
    where a = alphas_bar[t] is the squared weight of the image in x_t.
    """
    B = len(x_0)
    # u: stratified over [0, 1], then shifted to the middle (Esser et al. 2024, s = 1.29) and to
    # noisier images (Eq. 23, shift 1.6): those t decide what the image will show.
    u = (torch.arange(B, device=x_0.device) + torch.rand(B, device=x_0.device)) / B
    u = 1 - u - 1.29 * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
    u = 1.6 * u / (1 + 0.6 * u)
    t = (u * T).ceil().long().clamp(1, T)
    a = alphas_bar[t].view(B, 1, 1, 1)
    eps = torch.randn_like(x_0)  # eps ~ N(0, I)
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps  # DDPM Eq. 4
    v = a.sqrt() * eps - (1 - a).sqrt() * x_0  # Salimans & Ho Sec. 4
    return F.mse_loss(model(x_t, t), v)


# ── Sampler ───────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def sample(model, x_t: torch.Tensor, steps: int, eta: float, generators, film=None) -> torch.Tensor:
    """SDE-DPM-Solver++(2M): noise x_t (B, 1, 28, 28) -> images in [-1, 1]; v = model(x_t, t).

    Lu et al. 2022. eta: 0 adds no noise while sampling, 1 as much as DDPM. generators:
    one for each image. film: a list to which every (t, x_t, x0_hat) is appended.
    """
    alphas_bar = common.cosine_alphas_bar(x_t.device)
    lambdas = (alphas_bar / (1 - alphas_bar).clamp(min=1e-20)).log() / 2  # half the log-SNR
    # Between equal steps in t and equal steps in the log-SNR, which are finer at both ends.
    even = torch.linspace(lambdas[T].item(), lambdas[1].item(), steps).to(x_t.device)
    even = T - torch.searchsorted(lambdas.flip(0), even)  # the t of each, from T to 1
    times = 0.4 * torch.linspace(T, 0, steps + 1) + 0.6 * F.pad(even.cpu(), (0, 1))
    times = sorted({*times.round().long().tolist()}, reverse=True)  # no t twice
    x0_before, h_before = None, None
    for t, t_next in zip(times, times[1:]):
        a, a_next, h = alphas_bar[t], alphas_bar[t_next], lambdas[t_next] - lambdas[t]
        v = model(x_t, torch.full((len(x_t),), t, device=x_t.device))
        x0_hat = a.sqrt() * x_t - (1 - a).sqrt() * v  # Salimans & Ho Sec. 4
        x0_hat = x0_hat.clamp(-1, 1)  # the range of pixels
        if film is not None:
            film.append((t, x_t, x0_hat))
        x0_ahead = x0_hat
        if x0_before is not None and t_next > 0:  # extrapolate x0_hat: Lu et al. Alg. 2
            x0_ahead = x0_hat + h / (2 * h_before) * (x0_hat - x0_before)
        z = common.noise(generators, 1, 28, 28).to(x_t.device)  # z ~ N(0, I)
        x_t = ((1 - a_next) / (1 - a)).sqrt() * (-eta * h).exp() * x_t
        x_t = x_t + a_next.sqrt() * (1 - (-(1 + eta) * h).exp()) * x0_ahead
        x_t = x_t + ((1 - a_next) * (1 - (-2 * eta * h).exp())).sqrt() * z
        x0_before, h_before = x0_hat, h
    if film is not None:
        film.append((0, x_t, x_t))
    return x_t


# ── Training ──────────────────────────────────────────────────────────────────────────────────────


def train(run: common.Run, model: UNet) -> None:
    """Train model, from where the run stopped if it was interrupted."""
    config = run.config
    images, labels = run.load_data()  # uint8 (N, 28, 28), int64 (N,)
    captions = run.captions(images, labels)  # all training sentences, and which fit an image
    texts = run.encoder.encode_text(captions.sentences).to(run.device)  # (S, dim)
    model.text_mean, model.text_std = texts.mean(0), texts.std(0).mean()
    alphas_bar = common.cosine_alphas_bar(run.device)
    optimizer = common.Muon(model.parameters(), config.lr, config.muon_lr)
    for step in run.steps(model=model, optimizer=optimizer):
        for group in optimizer.param_groups:  # warm up for 100 steps, then linearly to 0
            group["lr"] = group["peak"] * min((step + 1) / 100, 1 - step / config.train_steps)
        i = captions.pick(run.batch_size)  # (B,)
        x_0 = common.to_images(images[i])  # (B, 1, 28, 28) in [-1, 1]
        mentioned = captions.mention(i)  # (B, attributes): -1 low, 1 high, 0 not mentioned
        text = texts[captions.find(i, mentioned)]  # (B, dim)
        with run.autocast():  # bfloat16 on devices where it is fast
            loss = diffusion_loss(partial(run.parallel(model), text=text), x_0, alphas_bar)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.losses.append({"loss": loss.detach()})


# ── Main ──────────────────────────────────────────────────────────────────────────────────────────


def main(argv: list[str] | None = None) -> None:
    """Train unless that is done, then generate. argv: flags, or None for the command line's."""
    config = Config.parse(argv)
    run = common.Run(config)
    if common.complete(run):
        return
    run.encoder = common.load_clip(config, run.device)
    torch.manual_seed(config.seed)
    model = UNet(config, run.encoder.dim).to(run.device)

    def draw(prompts, scale, generators, film=None):
        x_T = common.noise(generators, 1, 28, 28)  # the same on every device
        v = partial(model, text=run.encoder.encode_text(prompts).to(run.device))
        return sample(v, x_T.to(run.device), config.sample_steps, config.eta, generators, film)

    if config.prompt is None and run.step < config.train_steps:
        train(run, model)
    else:
        run.load(model=model)
    common.save_outputs(run, draw)


if __name__ == "__main__":
    main()
