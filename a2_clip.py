"""A2: what CLIP buys. A pretrained encoder turns the sentence into the vector that the network reads.

Idea      CLIP has learned which sentences mean the same: new phrasings land near the ones trained on.
Changed   Against a1_cond.py: CLIP's text embedding (tiny: 64 numbers, ViT-B/32: 512) instead of the bag of words (512).
Papers    DDPM (Ho et al. 2020), DDIM (Song et al. 2021), improved DDPM (Nichol & Dhariwal 2021), v-prediction (Salimans
          & Ho 2022), adaptive group norm (Dhariwal & Nichol 2021),
          CLIP (Radford et al. 2021).
Commands  python a2_clip.py --dataset mnist
          python a2_clip.py --prompt "a handwritten seven" --n 16
Result    95.6 % of 2,000 images are the asked digit, and 96.0 % of 500 with phrasings never trained on
          (read by the embedded CLIP; seed 0, embedded data, two cores of an AMD EPYC)
"""

import copy
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

try:
    import common
except ModuleNotFoundError as error:  # this file alone, carried away or pasted into a notebook
    missing = f"no module {error.name}: get common.py, tiny_clip.py, drawing/ and loading/ from this file's repository"
    raise SystemExit(f"{missing} and put them beside it; its notebook in colab/ has them in folded cells") from None
import drawing
import tiny_clip

WIDTHS = 48, 96  # channels at 14 x 14 and at 7 x 7
PATCH = 2  # a 28 x 28 image enters as 14 x 14 patches of 4 pixels: 4 times fewer positions to compute
EMA_DECAY = 0.999

# ── Network ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class ResBlock(nn.Module):
    """(B, c_in, H, W) -> (B, c_out, H, W); the condition scales and shifts the features (adaptive group norm)."""

    def __init__(self, c_in: int, c_out: int, width: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # each block starts as no more than its skip

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        gain, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)  # (B, c_out, 1, 1) each
        h = self.conv2(F.silu(self.norm2(h) * (1 + gain) + shift))
        return self.skip(x) + h


class UNet(nn.Module):
    """Predicts v from x_t (B, 1, 28, 28), t (B,) in 1..T and text (B, dim), rows of length 1."""

    def __init__(self, text_dim: int):
        super().__init__()
        c1, c2 = WIDTHS
        width = 2 * c2
        self.time = TimeEmbedding(width)
        self.text = nn.Sequential(nn.Linear(text_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.inp = nn.Conv2d(PATCH**2, c1, 3, padding=1)
        self.down1 = ResBlock(c1, c1, width)
        self.coarser = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.middle1 = ResBlock(c2, c2, width)
        self.middle2 = ResBlock(c2, c2, width)
        self.finer = nn.Conv2d(c2, c1, 1)
        self.up1 = ResBlock(2 * c1, c1, width)
        self.norm, self.out = nn.GroupNorm(8, c1), nn.Conv2d(c1, PATCH**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        text = text * text.shape[1] ** 0.5  # entries of about 1, as a network likes them
        condition = F.silu(self.time(t) + self.text(text))  # (B, width)
        h1 = self.inp(F.pixel_unshuffle(x_t, PATCH))  # (B, c1, 14, 14)
        h1 = self.down1(h1, condition)
        h = self.middle1(self.coarser(h1), condition)  # (B, c2, 7, 7)
        h = self.finer(self.middle2(h, condition))  # (B, c1, 7, 7)
        h = torch.cat([F.interpolate(h, scale_factor=2), h1], dim=1)  # (B, 2 c1, 14, 14)
        h = self.out(F.silu(self.norm(self.up1(h, condition))))  # (B, 4, 14, 14)
        return F.pixel_shuffle(h, PATCH)  # (B, 1, 28, 28)


# ── Conditioning ──────────────────────────────────────────────────────────────────────────────────────────────────────


class TimeEmbedding(nn.Module):
    """t (B,) in 1..T -> (B, width): sines and cosines of t (Vaswani et al. 2017), then a small network."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(32, device=t.device) / 32)  # (B, 32)
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=1))


# ── Loss ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def diffusion_loss(model, x_0: torch.Tensor, alphas_bar: torch.Tensor) -> torch.Tensor:
    """The mean squared error of v = model(x_t, t) over a batch of images x_0 (B, 1, 28, 28) in [-1, 1].

    v mixes image and noise so that both can be had from it at any t: x_0 = sqrt(a) x_t - sqrt(1 - a) v and
    eps = sqrt(1 - a) x_t + sqrt(a) v, where a = alphas_bar[t] is the squared weight of the image in x_t.
    """
    B = len(x_0)
    u = (torch.arange(B, device=x_0.device) + torch.rand(B, device=x_0.device)) / B  # stratified over [0, 1]
    u = 1 - u - 1.29 * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)  # more in the middle: s = 1.29 of Esser et al. 2024
    t = (u * common.T).ceil().long().clamp(1, common.T)
    a = alphas_bar[t].view(B, 1, 1, 1)
    eps = torch.randn_like(x_0)  # eps ~ N(0, I)
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps  # DDPM Eq. 4
    v = a.sqrt() * eps - (1 - a).sqrt() * x_0  # Salimans & Ho Sec. 4
    return F.mse_loss(model(x_t, t), v)


# ── Sampler ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def sample(model, x_t: torch.Tensor, steps: int, eta: float, generator, film: list | None = None) -> torch.Tensor:
    """DDIM (Song et al. 2021): noise x_t (B, 1, 28, 28) -> images in [-1, 1], in the given steps; v = model(x_t, t).

    eta 0 adds no noise on the way, eta 1 as much as DDPM. film, if given, collects (t, x_t) of every step.
    """
    alphas_bar = common.cosine_alphas_bar(x_t.device)
    times = torch.linspace(common.T, 0, steps + 1).round().long().tolist()
    for t, t_next in zip(times, times[1:]):
        if film is not None:
            film.append((t, x_t))
        a, a_next = alphas_bar[t], alphas_bar[t_next]
        v = model(x_t, torch.full((len(x_t),), t, device=x_t.device))
        x0_hat = (a.sqrt() * x_t - (1 - a).sqrt() * v).clamp(-1, 1)  # Salimans & Ho Sec. 4; pixels end at -1 and 1
        eps = (x_t - a.sqrt() * x0_hat) / (1 - a).sqrt()  # the noise that would be left if x0_hat were true
        sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()  # DDIM Eq. 16
        z = torch.randn(x_t.shape, generator=generator).to(x_t.device)  # z ~ N(0, I)
        x_t = a_next.sqrt() * x0_hat + (1 - a_next - sigma**2).clamp(min=0).sqrt() * eps + sigma * z  # DDIM Eq. 12
    if film is not None:
        film.append((0, x_t))
    return x_t


# ── Training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def train(run: common.Run, model: UNet, ema: UNet) -> None:
    """Train model, and ema, the running mean of its weights that samples are drawn from. Goes on where run stopped."""
    args = run.args
    images, labels = run.load_data()  # (N, 1, 28, 28) in [-1, 1], (N,)
    texts = common.phrasings(args, common.TRAIN_TEMPLATES)
    texts = torch.stack([run.encoder.encode_text(group) for group in texts]).to(args.device)  # (C, phrasings, dim)
    alphas_bar = common.cosine_alphas_bar(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    for step in run.steps(model=model, ema=ema, optimizer=optimizer):
        for group in optimizer.param_groups:  # up in 100 steps, then straight down to 0
            group["lr"] = args.lr * min((step + 1) / 100, 1 - step / args.train_steps)
        i = torch.randint(len(images), (args.batch_size,), device=args.device)
        text = texts[labels[i], torch.randint(texts.shape[1], i.shape, device=args.device)]  # (B, dim)
        loss = diffusion_loss(partial(model, text=text), images[i], alphas_bar)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))  # forgets the first steps sooner
        with torch.no_grad():
            for mean, weight in zip(ema.parameters(), model.parameters()):
                mean.lerp_(weight, 1 - decay)
        run.losses.append({"loss": loss.detach()})


# ── Main ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def main(argv: list[str] | None = None) -> None:
    """What the command above does. argv: its flags; None for those typed."""
    args = common.parse_args("a2_clip", __doc__, argv)
    run = common.Run(args)
    if args.prompt is None and drawing.complete(run):
        return
    run.encoder = tiny_clip.load_clip(run.clip, args)  # --clip, or the one that the run was trained with
    torch.manual_seed(args.seed)
    model = UNet(run.encoder.dim).to(args.device)
    ema = copy.deepcopy(model)
    run.check_model(model)

    def draw(prompts, scale, generator, film=None):
        x_T = torch.randn(len(prompts), 1, 28, 28, generator=generator).to(args.device)  # the same on every device
        v = partial(ema, text=run.encoder.encode_text(prompts))
        return sample(v, x_T, args.sample_steps, args.eta, generator, film)

    if args.prompt is None and run.step < args.train_steps:
        train(run, model, ema)
    else:
        ema.load_state_dict(run.checkpoint["ema"])
    drawing.save_outputs(run, draw)


if __name__ == "__main__":
    common.cli(main)
