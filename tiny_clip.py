"""CLIP: OpenAI's checkpoints, or a small one trained here from scratch in two minutes, the embedded default encoder.

Idea      Images and sentences about them meet in one space: what belongs together scores higher than all the rest.
Model     `clip.model.CLIP` itself at toy size, so this file and OpenAI's go through the same code.
Targets   A batch holds many images and many captions of each class, and every such pair is right (UniCL, Yang et al.
          2022), not only the pairs of one image with one caption.
Captions  Most are the class word among random tokens. From fixed sentences the text side learns the sentences; among
          noise it can only learn to find the word, and so it understands phrasings it never saw.
Command   python tiny_clip.py --dataset mnist        writes assets/tiny_clip.pt
Result    99.0 % zero-shot on 500 digits never trained on, 240 of 240 held-out prompts (seed 0; 132 s on two cores)
"""

import argparse
import re
import sys
import time
import types
import warnings
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import common

STEPS, IMAGES, CAPTIONS, LR = 1300, 64, 30, 2e-3  # images and captions of a step
P_NOISE, MAX_NOISE = 0.75, 20  # share of captions among random tokens, and the most of these on either side


# ── Loading: OpenAI's checkpoints or ours ──


def import_clip():
    """OpenAI's package wants pkg_resources.packaging, which setuptools dropped: hand it the real packaging."""
    if "clip" not in sys.modules:
        import packaging.version

        before = sys.modules.get("pkg_resources")
        sys.modules["pkg_resources"] = types.SimpleNamespace(packaging=packaging)
        try:
            import clip
        finally:
            sys.modules["pkg_resources"] = before
            if before is None:
                del sys.modules["pkg_resources"]
    import clip

    if not hasattr(clip, "tokenize"):
        raise common.UserError("this clip is not OpenAI's: pip uninstall clip; pip install -r requirements.txt")
    return clip


class Clip:
    """A CLIP checkpoint (Radford et al. 2021). Rows of both encoders' results are float32 and of length 1."""

    def __init__(self, name: str, path: Path, device: torch.device):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit announces its retirement
                try:
                    state = torch.jit.load(str(path), map_location="cpu").state_dict()  # OpenAI's format
                except RuntimeError:
                    state = torch.load(path, map_location="cpu", weights_only=True)
            self.model = import_clip().model.build_model(dict(state)).float().to(device)
        except common.UNREADABLE as error:
            raise common.UserError(f"{path} is no CLIP checkpoint, or damaged ({common.one_line(error)})") from None
        self.name, self.device, self.dim = name, device, self.model.text_projection.shape[1]
        self.crc32 = zlib.crc32(path.read_bytes())  # tells two files of one name apart

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """-> (n, dim). common.UserError for a text of more than 77 tokens, the marks at its two ends included."""
        texts = [re.sub(r"(?<!\w)['‘’]", " ", text) for text in texts]  # CLIP's tokenizer would read 'seven as 's even
        try:
            tokens = import_clip().tokenize(texts)  # (n, 77)
        except RuntimeError:
            raise common.UserError(f"too long for CLIP, which reads 77 tokens: {max(texts, key=len)[:60]}...") from None
        return F.normalize(torch.cat([self.model.encode_text(t.to(self.device)) for t in tokens.split(256)]), dim=-1)

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """images (n, 1, H, W) in [-1, 1] -> (n, dim)."""
        size = self.model.visual.input_resolution
        parts = [self.model.encode_image(clip_pixels(part, size).to(self.device)) for part in images.split(256)]
        return F.normalize(torch.cat(parts), dim=-1)


def clip_pixels(images: torch.Tensor, size: int) -> torch.Tensor:
    """images (n, 1, H, W) in [-1, 1] -> (n, 3, size, size), normalised by CLIP's own mean and deviation."""
    images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    mean = images.new_tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = images.new_tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return ((images + 1) / 2 - mean) / std


def load_clip(name: str, device: torch.device) -> Clip:
    """name: auto, tiny, one of OpenAI's, or a file; UserError if it cannot be had. Only auto falls back, to tiny."""
    if name == "auto":
        try:
            return load_clip("ViT-B/32", device)
        except common.UserError as error:
            print(f"CLIP: {error}; using the embedded tiny CLIP", file=sys.stderr)
            name = "tiny"
    if name == "tiny":
        return Clip(name, common.ROOT / "assets" / "tiny_clip.pt", device)
    if name in import_clip().available_models():
        return Clip(name, fetch_clip(name), device)
    if Path(name).is_file():
        return Clip(str(Path(name).resolve()), Path(name), device)
    raise common.UserError(
        f"--clip {name}: no such file or model: auto, tiny, {', '.join(import_clip().available_models())}"
    )


def fetch_clip(name: str) -> Path:
    """One of OpenAI's checkpoints, from their package's cache folder or their host, its SHA-256 checked."""
    url = import_clip().clip._MODELS[name]
    sha256, file = url.split("/")[-2:]
    path = Path.home() / ".cache" / "clip" / file
    try:
        common.fetch(url, path, sha256)
    except common.UserError as error:
        raise common.UserError(f"{name}: {error}") from None
    return path


# ── Training ours ──


def build_clip():
    """-> clip.model.CLIP: ModifiedResNet on 64 x 64 images, a text transformer of 2 layers, 64-d embeddings."""
    model = import_clip().model.CLIP(
        embed_dim=64, image_resolution=64, vision_layers=(1, 1, 1, 1), vision_width=10, vision_patch_size=None,
        context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=2,
    )  # fmt: skip
    return model.float()


def noisy_captions(labels: torch.Tensor, words: list[list[list[int]]], known: set[int]) -> torch.Tensor:
    """labels (B,) -> tokens (B, 77): start, random tokens, one of the class's words, random tokens, end."""
    start, end = 49406, 49407
    tokens = torch.zeros(len(labels), 77, dtype=torch.long)
    for row, y in zip(tokens, labels.tolist()):
        before, after, which = torch.randint(0, MAX_NOISE + 1, (3,)).tolist()
        noise = [t for t in torch.randint(0, start, (before + after,)).tolist() if t not in known]
        caption = [start, *noise[:before], *words[y][which % len(words[y])], *noise[before:], end]
        row[: len(caption)] = torch.tensor(caption)
    return tokens


def jitter(images: torch.Tensor) -> torch.Tensor:
    """Turn, scale, shear and shift each image a little (B, 1, 28, 28): 4,500 digits are few."""
    n = len(images)
    angle, shear = torch.empty(2, n).uniform_(-0.2, 0.2)
    scale = torch.empty(n).uniform_(0.85, 1.15)
    shift = torch.empty(n, 2).uniform_(-0.1, 0.1)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos, shear - sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # + 1: outside the image is black


def contrastive_loss(model, images: torch.Tensor, tokens: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """CLIP's loss in both directions for (I, 3, H, W) and (J, 77); same (I, J) tells which belong together."""
    image, text = F.normalize(model.encode_image(images), dim=-1), F.normalize(model.encode_text(tokens), dim=-1)
    logits = model.logit_scale.clamp(max=4.6052).exp() * image @ text.T  # (I, J); at most 100 times, as CLIP Sec. 2.5
    losses = [F.cross_entropy(x, F.normalize(y.float(), p=1, dim=1)) for x, y in ((logits, same), (logits.T, same.T))]
    return sum(losses) / 2


@torch.no_grad()
def class_vectors(clip: Clip, dataset: str) -> torch.Tensor:
    """The mean text embedding of each class over the trained phrasings (C, dim): zero-shot, CLIP Sec. 3.1.4."""
    texts = common.phrasings(dataset, common.TRAIN_TEMPLATES[dataset])
    return F.normalize(torch.stack([clip.encode_text(t).mean(0) for t in texts]), dim=-1)


@torch.no_grad()
def measure(clip: Clip, dataset: str, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Zero-shot accuracy on images, and the share of held-out phrasings whose nearest class is the one they name."""
    classes = class_vectors(clip, dataset)
    texts = common.phrasings(dataset, common.HELDOUT_TEMPLATES[dataset])
    asked = torch.cat([(clip.encode_text(group) @ classes.T).argmax(1) == y for y, group in enumerate(texts)])
    right = (clip.encode_image(images) @ classes.T).argmax(1) == labels.to(classes.device)
    return {"zero-shot": right.float().mean().item(), "held-out phrasings": asked.float().mean().item()}


def train(dataset: str, steps: int, seed: int, device: torch.device):
    """-> the trained model, in evaluation mode."""
    torch.manual_seed(seed)
    pixels, labels = common.embedded_mnist("train")
    images = pixels[:, None].float() / 127.5 - 1
    encode = import_clip().clip._tokenizer.encode
    words = [[encode(word) for word in group] for group in common.CLASS_WORDS[dataset]]
    known = {token for group in words for word in group for token in word}
    texts = common.phrasings(dataset, common.TRAIN_TEMPLATES[dataset])
    tokens = torch.stack([import_clip().tokenize(group) for group in texts])  # (C, P, 77)

    model = build_clip().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    y_text = torch.arange(CAPTIONS) % len(words)
    for _ in (bar := tqdm(range(steps), disable=not sys.stderr.isatty(), desc="tiny CLIP")):
        i = torch.randint(len(images), (IMAGES,))
        image = clip_pixels(jitter(images[i]), model.visual.input_resolution)
        fixed = tokens[y_text, torch.randint(tokens.shape[1], (CAPTIONS,))]
        text = torch.where(torch.rand(CAPTIONS, 1) < P_NOISE, noisy_captions(y_text, words, known), fixed)
        same = labels[i, None] == y_text
        loss = contrastive_loss(model, image.to(device), text.to(device), same.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def main(argv: list[str] | None = None) -> None:
    parser = common.Parser("tiny_clip.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist", choices=["mnist"], help="what it learns to read (default mnist)")
    parser.add_argument("--out", type=Path, default=common.ROOT / "assets" / "tiny_clip.pt", help="the file to write")
    parser.add_argument("--train-steps", type=common.number(int, 1, 10**7), default=STEPS, help=f"default {STEPS}")
    parser.add_argument("--seed", type=common.number(int, 0, 2**31), default=0, help="default 0")
    parser.add_argument("--device", default="cpu", help="default cpu")
    args = parser.parse_args(argv)
    device, start = common.pick_device(args.device), time.time()
    model = train(args.dataset, args.train_steps, args.seed, device)
    state = model.half().state_dict()  # the file is mostly the table of 49,408 tokens
    common.save_file(args.out, lambda file: torch.save(state, file))
    clip = Clip("tiny", args.out, device)
    pixels, labels = common.embedded_mnist("test")
    result = measure(clip, args.dataset, pixels[:, None].float() / 127.5 - 1, labels)
    seen = ", ".join(f"{name} {share:.1%}" for name, share in result.items())
    size, seconds = args.out.stat().st_size / 1e6, time.time() - start
    print(f"{args.out}: {size:.2f} MB, {seconds:.0f} s; accuracy on what it never saw: {seen}")


if __name__ == "__main__":
    common.cli(main)
