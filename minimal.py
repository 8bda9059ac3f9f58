"""Diffusion in 60 lines: learn to clean noisy digits, then clean pure noise, a little at a time.

Needs torch, numpy, Pillow and assets/mnist_20k.npz (in Colab: upload it to a folder assets). Saves
minimal.png: six digits at eight moments, the noisy image x_t, and below what is seen in it, x0_hat.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

T, STEPS, BATCH, LR = 200, 4000, 128, 1e-3  # noise levels; of training: steps, images in each, rate
alphas_bar = torch.linspace(0, torch.pi / 2, T + 1).cos() ** 2  # share of the image left, 1 to 0


class Denoiser(nn.Module):  # x_t (B, 1, 24, 24), without the black edge; t (B,) in 1..T -> x0_hat
    def __init__(self):
        super().__init__()
        self.time, self.inp, self.out = nn.Linear(32, 640), nn.Linear(576, 640), nn.Linear(640, 576)
        self.layers = nn.ModuleList(nn.Linear(640, 640) for _ in range(3))
        self.time2, self.look = nn.Linear(32, 32), nn.Conv2d(8, 32, 3, padding=1)
        self.correct = nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, x_t, t):
        waves = (t[:, None] / T * torch.pi * torch.arange(32)).cos()  # (B, 32)
        h, time = self.inp(x_t.flatten(1)), self.time(waves)  # (B, 640) each
        for layer in self.layers:
            h = h + layer(F.silu(F.layer_norm(h, [640]) + time))
        guess = self.out(F.silu(h)).view_as(x_t)  # by all pixels at once: blurred
        h = self.look(F.pixel_unshuffle(torch.cat([guess, x_t], 1), 2))  # (B, 32, 12, 12)
        h = F.silu(h + self.time2(waves)[:, :, None, None])  # by the pixels around: sharper
        return guess + F.pixel_shuffle(self.correct(h), 2)


digits = torch.tensor(np.load("assets/mnist_20k.npz")["images"])[:, None, 2:-2, 2:-2] / 127.5 - 1
model = Denoiser()
optimizer = torch.optim.Adam(model.parameters(), LR, fused=True)
for step in range(STEPS):
    x_0, t = digits[torch.randint(len(digits), (BATCH,))], torch.randint(1, T + 1, (BATCH,))
    a = alphas_bar[t].view(BATCH, 1, 1, 1)
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * torch.randn_like(x_0)  # DDPM Eq. 4
    loss = F.mse_loss(model(x_t, t), x_0)  # best answer: the mean of all x_0 that may be in x_t
    optimizer.param_groups[0]["lr"] = LR * (1 - step / STEPS)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 200 == 0:
        print(f"step {step} of {STEPS}: loss {loss.item():.3f}", flush=True)

x_t, film = torch.randn(6, 1, 24, 24), []  # six images, from pure noise
for t in range(T, 0, -1):
    x0_hat = model(x_t, torch.full((len(x_t),), t)).detach().clamp(-1, 1)
    film.append(torch.stack([x_t, x0_hat], 1)[:, :, 0])  # (6, 2, 24, 24)
    a, a_next, alpha = alphas_bar[t], alphas_bar[t - 1], alphas_bar[t] / alphas_bar[t - 1]
    mean = a_next.sqrt() * (1 - alpha) * x0_hat + alpha.sqrt() * (1 - a_next) * x_t
    sd = ((1 - alpha) * (1 - a_next) / (1 - a)).sqrt()
    x_t = mean / (1 - a) + sd * torch.randn_like(x_t)  # DDPM Eq. 6 and 7
moments = torch.stack(film[::28], 3).reshape(6 * 2 * 24, 8 * 24)  # rows x_t, x0_hat of each image
Image.fromarray(((moments.clamp(-1, 1) + 1) * 127.5).byte().numpy()).save("minimal.png")
