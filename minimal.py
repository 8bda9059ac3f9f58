"""Diffusion in 60 lines: learn to clean noisy digits; then clean pure noise, a little at a time.

Needs torch, numpy, Pillow and one file: assets/mnist_20k.npz, 20,000 real digits (in Colab: make a
folder assets, upload it there, paste this). Two minutes on two cores. Saves minimal.png: eight
moments of four digits, noisy image x_t above, and below what the network sees in it, x0_hat.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

T, STEPS, BATCH = 200, 3000, 64  # noise levels, training steps, images in each
alphas_bar = torch.linspace(0, torch.pi / 2, T + 1).cos() ** 2  # 1 at t = 0: clean; 0 at T: noise


class Denoiser(nn.Module):
    """Predicts the clean image x_0 from a noisy one x_t (B, 1, 28, 28) and its level t (B,)."""

    def __init__(self):
        super().__init__()
        self.time = nn.Embedding(T + 1, 64)
        self.inp = nn.Conv2d(4, 32, 3, padding=1)
        self.down = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(4))
        self.up = nn.Conv2d(96, 64, 3, padding=1)
        self.out = nn.Conv2d(64, 4, 3, padding=1)

    def forward(self, x_t, t):
        fine = F.silu(self.inp(F.pixel_unshuffle(x_t, 2)))  # 2 x 2 pixels each: (B, 32, 14, 14)
        h = self.down(fine) + self.time(t)[:, :, None, None]  # (B, 64, 7, 7)
        for layer in self.middle:
            h = h + layer(F.silu(F.group_norm(h, 8)))
        h = torch.cat([fine, F.interpolate(h, scale_factor=2)], dim=1)  # (B, 96, 14, 14)
        return F.pixel_shuffle(self.out(F.silu(self.up(h))), 2)  # (B, 1, 28, 28)


def noised(x_0, t):
    """x_0 (B, 1, 28, 28) at noise levels t (B,): DDPM Eq. 4."""
    a = alphas_bar[t].view(-1, 1, 1, 1)
    return a.sqrt() * x_0 + (1 - a).sqrt() * torch.randn_like(x_0)


def train(digits, steps=STEPS):
    model = Denoiser()
    optimizer = torch.optim.Adam(model.parameters(), LR)
    for step in range(steps):
        x_0, t = digits[torch.randint(len(digits), (BATCH,))], torch.randint(1, T + 1, (BATCH,))
        optimizer.param_groups[0]["lr"] = LR * (1 - step / steps)
        loss = F.mse_loss(model(noised(x_0, t), t), x_0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    return model


@torch.no_grad()
def sample(model, n):
    x_t, film = torch.randn(n, 1, 28, 28), []
    for t in range(T, 0, -1):
        x0_hat = model(x_t, torch.full((n,), t)).clamp(-1, 1)
        film.append((x_t, x0_hat))
        a, a_next = alphas_bar[t], alphas_bar[t - 1]
        alpha = a / a_next
        mean = a_next.sqrt() * (1 - alpha) * x0_hat + alpha.sqrt() * (1 - a_next) * x_t
        sd = ((1 - alpha) * (1 - a_next) / (1 - a)).sqrt()
        x_t = mean / (1 - a) + sd * torch.randn_like(x_t)  # DDPM Eq. 7
    return x_t, film
