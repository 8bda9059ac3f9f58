"""CGAN: the other family. A generator and a discriminator read the same text as A2's network and train each other.

Idea      No noise to undo: one network draws in a single step, another learns to tell its images from real ones.
Changed   Against a2_clip.py: two networks, their losses, their optimisers and width, sampling in one step.
Papers    GAN (Goodfellow et al. 2014), conditional GAN (Mirza & Osindero 2014), relativistic pairs (Jolicoeur-Martineau
          2019) with gradient penalties on real and drawn images (Mescheder et al. 2018; together: R3GAN, Huang et al.
          2024), projection discriminator (Miyato & Koyama 2018).
Commands  python cgan.py --dataset mnist
          python cgan.py --prompt "a handwritten seven" --n 16
Result    99.0 % of 2,000 images are the asked digit, and 99.0 % of 500 with phrasings never trained on
          (read by the embedded CLIP; seed 0, embedded data, two cores of an AMD EPYC)
"""

import copy
import math

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

WIDTHS = (
    32,
    64,
)  # channels at 14 x 14 and at 7 x 7; narrower than the ladder's: a step costs two networks and two penalties
PATCH = 2  # a 28 x 28 image leaves as 14 x 14 patches of 4 pixels: 4 times fewer positions to compute
Z = 64  # entries of the noise vector z
GAMMA = 3.0  # weight of the gradient penalties; at 1, long training ended with nearly all twos alike
EMA_DECAY = 0.999
DEFAULTS = {"train_steps": 4000, "lr": 3e-4, "sample_steps": 1, "eta": 0.0}

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


class Generator(nn.Module):
    """Draws images (B, 1, 28, 28) in [-1, 1] from z (B, Z) and text (B, dim), rows of length 1."""

    def __init__(self, text_dim: int):
        super().__init__()
        c1, c2 = WIDTHS
        width = 2 * c2
        self.text = nn.Sequential(nn.Linear(text_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.inp = nn.Linear(Z, c2 * 7 * 7)  # z alone: mixed with the text here, it was ignored, and all sevens alike
        self.middle1 = ResBlock(c2, c2, width)
        self.middle2 = ResBlock(c2, c2, width)
        self.finer = nn.Conv2d(c2, c1, 1)
        self.up1 = ResBlock(c1, c1, width)
        self.norm, self.out = nn.GroupNorm(8, c1), nn.Conv2d(c1, PATCH**2, 3, padding=1)

    def forward(self, z: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        text = text * text.shape[1] ** 0.5  # entries of about 1, as a network likes them
        condition = F.silu(self.text(text))  # (B, width)
        h = self.inp(z).view(len(z), -1, 7, 7)  # (B, c2, 7, 7)
        h = self.middle2(self.middle1(h, condition), condition)
        h = F.interpolate(self.finer(h), scale_factor=2)  # (B, c1, 14, 14)
        h = self.out(F.silu(self.norm(self.up1(h, condition))))  # (B, 4, 14, 14)
        return F.pixel_shuffle(h, PATCH).tanh()  # (B, 1, 28, 28)


class Discriminator(nn.Module):
    """Scores images (B, 1, 28, 28) with their texts (B, dim) -> (B,): higher is more real. No normalisation: R3GAN."""

    def __init__(self, text_dim: int):
        super().__init__()
        c1, c2 = WIDTHS
        self.features = nn.Sequential(
            nn.PixelUnshuffle(PATCH), nn.Conv2d(PATCH**2, c1, 3, padding=1), nn.LeakyReLU(0.2),  # (B, c1, 14, 14)
            nn.Conv2d(c1, c2, 3, stride=2, padding=1), nn.LeakyReLU(0.2),  # (B, c2, 7, 7)
            nn.Conv2d(c2, c2, 3, padding=1), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(c2 * 7 * 7, 2 * c2), nn.LeakyReLU(0.2),  # (B, 2 c2)
        )  # fmt: skip
        self.score = TextProjection(text_dim, 2 * c2)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.score(self.features(x), text)


# ── Conditioning ──────────────────────────────────────────────────────────────────────────────────────────────────────


class TextProjection(nn.Module):
    """Features (B, width), text (B, dim) -> (B,): how real the image looks, plus how well it fits the text."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.real, self.text = nn.Linear(width, 1), nn.Linear(dim, width)

    def forward(self, features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        text = self.text(text * text.shape[1] ** 0.5)  # (B, width)
        return self.real(features)[:, 0] + (text * features).mean(1)  # Miyato & Koyama 2018, but for scale and bias


# ── Loss ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def discriminator_loss(model: Discriminator, x: torch.Tensor, drawn: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Each real image of x (B, 1, 28, 28) shall score above the drawn one of the same text (B, dim)."""
    images = torch.cat([x, drawn.detach()]).requires_grad_()  # (2B, 1, 28, 28)
    scores = model(images, text.repeat(2, 1))
    (slope,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    real, fake = scores.chunk(2)
    penalty = slope.square().sum() / len(x)  # R1 + R2: Mescheder et al. Eq. 9 on real and on drawn images
    return F.softplus(fake - real).mean() + GAMMA / 2 * penalty  # R3GAN's loss


def generator_loss(model: Discriminator, x: torch.Tensor, drawn: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Each drawn image shall score above the real one of the same text. Shapes as above."""
    return F.softplus(model(x, text) - model(drawn, text)).mean()


# ── Sampler ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def sample(model: Generator, text: torch.Tensor, generator, film: list | None = None) -> torch.Tensor:
    """text (B, dim) -> images (B, 1, 28, 28) in [-1, 1]. film, if given, collects a walk from one z to another."""
    z, z_end = torch.randn(2, len(text), Z, generator=generator).to(text.device)  # the same on every device
    for angle in torch.linspace(0, math.pi / 2, 11) if film is not None else []:
        film.append((f"{angle / math.pi * 180:.0f}°", model(angle.cos() * z + angle.sin() * z_end, text)))
    return model(z, text)


# ── Training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def train(run: common.Run, model: Generator, ema: Generator) -> None:
    """Train model, and ema, the running mean of its weights that samples are drawn from. Goes on where run stopped."""
    args = run.args
    images, labels = run.load_data()  # (N, 1, 28, 28) in [-1, 1], (N,)
    texts = common.phrasings(args, common.TRAIN_TEMPLATES)
    texts = torch.stack([run.encoder.encode_text(group) for group in texts]).to(args.device)  # (C, phrasings, dim)
    discriminator = Discriminator(run.encoder.dim).to(args.device)
    optimizer_g = torch.optim.Adam(model.parameters(), args.lr, betas=(0.0, 0.99), fused=True)  # no momentum: R3GAN
    optimizer_d = torch.optim.Adam(discriminator.parameters(), args.lr, betas=(0.0, 0.99), fused=True)
    modules = {"discriminator": discriminator, "optimizer": optimizer_g, "optimizer_d": optimizer_d}
    for step in run.steps(model=model, ema=ema, **modules):
        for group in optimizer_g.param_groups + optimizer_d.param_groups:  # up in 100 steps, then straight down to 0
            group["lr"] = args.lr * min((step + 1) / 100, 1 - step / args.train_steps)
        i = torch.randint(len(images), (args.batch_size,), device=args.device)
        text = texts[labels[i], torch.randint(texts.shape[1], i.shape, device=args.device)]  # (B, dim)
        x, drawn = images[i], model(torch.randn(len(i), Z, device=args.device), text)
        loss_d = discriminator_loss(discriminator, x, drawn, text)
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        discriminator.requires_grad_(False)  # its turn is over: spare its gradients
        loss_g = generator_loss(discriminator, x, drawn, text)
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        discriminator.requires_grad_(True)
        decay = min(EMA_DECAY, (1 + step) / (10 + step))  # forgets the first steps sooner
        with torch.no_grad():
            for mean, weight in zip(ema.parameters(), model.parameters()):
                mean.lerp_(weight, 1 - decay)
        run.losses.append({"generator_loss": loss_g.detach(), "discriminator_loss": loss_d.detach()})


# ── Main ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def main(argv: list[str] | None = None) -> None:
    """What the command above does. argv: its flags; None for those typed."""
    args = common.parse_args("cgan", __doc__, argv, **DEFAULTS)
    run = common.Run(args)
    if args.prompt is None and drawing.complete(run):
        return
    run.encoder = tiny_clip.load_clip(run.clip, args)  # --clip, or the one that the run was trained with
    torch.manual_seed(args.seed)
    model = Generator(run.encoder.dim).to(args.device)
    ema = copy.deepcopy(model)
    run.check_model(model)

    def draw(prompts, scale, generator, film=None):
        return sample(ema, run.encoder.encode_text(prompts), generator, film)

    if args.prompt is None and run.step < args.train_steps:
        train(run, model, ema)
    else:
        ema.load_state_dict(run.checkpoint["ema"])
    drawing.save_outputs(run, draw)


if __name__ == "__main__":
    common.cli(main)
