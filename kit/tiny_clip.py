"""CLIP: OpenAI's checkpoints, or a small one trained here from scratch in minutes, the default where those are missing.

Idea      Images and sentences about them meet in one space: what belongs together scores higher than all the rest.
Model     `clip.model.CLIP` itself at toy size, so this file and OpenAI's go through the same code.
Targets   A batch holds many images and many captions of each class, and every such pair is right (UniCL, Yang et al.
          2022), not only the pairs of one image with one caption.
Captions  Most are the class word among random tokens. From fixed sentences the text side learns the sentences; among
          noise it can only learn to find the word, and so it understands phrasings it never saw.
Command   python tiny_clip.py --dataset mnist --out my_clip.pt
          without --out it replaces assets/tiny_clip.pt (other data sets: a file in data/tiny_clip), and runs made with
          the old one are refused
Result    99.0 % zero-shot on 500 digits never trained on, 240 of 240 held-out prompts (seed 0; 132 s on two cores)
"""

import argparse
import json
import sys
import time
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

import common
import loading
from loading.openai_clip import Clip, clip_pixels, fetch_clip, import_clip

EMBEDDED = common.ROOT / "assets" / "tiny_clip.pt"
STEPS, IMAGES, CAPTIONS, MOST_CAPTIONS, LR = 1300, 64, 30, 60, 2e-3  # images and captions of a step
P_NOISE, MAX_NOISE = 0.75, 20  # share of captions among random tokens, and the most of these on either side


# ── Choosing one ──


def load_clip(name: str, args: argparse.Namespace) -> Clip:
    """name: auto, tiny, one of OpenAI's, or a file; UserError if it cannot be had. Only auto falls back, to tiny.

    args tells the data set that tiny must have learned, with classes and data_dir, and the device.
    """
    if name == "auto":
        try:
            return load_clip("ViT-B/32", args)
        except common.UserError as error:
            print(f"CLIP: {error}; using tiny CLIP", file=sys.stderr)
            name = "tiny"
    if name == "tiny":
        if not (path := tiny_path(args)).is_file():
            print(f"CLIP: {make(path, args, STEPS, 0)}", file=sys.stderr)
        return check_learned(Clip(name, path, args.device), path, args)
    if name in import_clip().available_models():
        return Clip(name, fetch_clip(name), args.device)
    if Path(name).is_file():
        return check_learned(Clip(str(Path(name).resolve()), Path(name), args.device), Path(name), args)
    raise common.UserError(
        f"--clip {name}: no such file or model: auto, tiny, {', '.join(import_clip().available_models())}"
    )


def tiny_path(args: argparse.Namespace) -> Path:
    """Where the tiny CLIP of just these images is kept."""
    which = json.dumps([args.dataset, common.which(args)])
    name = f"{args.dataset}_{zlib.crc32(which.encode()):08x}.pt"
    kept = args.data_dir / "tiny_clip" / name
    return EMBEDDED if args.dataset == "mnist" and EMBEDDED.parent.exists() else kept  # a notebook has no assets


def check_learned(clip: Clip, path: Path, args: argparse.Namespace) -> Clip:
    """-> clip, unless it is one of ours that learned to read something else than args says."""
    embedded = ("mnist", common.DIGITS) if path.resolve() == EMBEDDED else None
    dataset, classes = clip.learned or embedded or (args.dataset, args.classes)
    if dataset != args.dataset or {*classes} != {*args.classes}:
        raise common.UserError(f"{path} learned to read {dataset} ({', '.join(classes[:4])}, ...), not what is asked")
    return clip


# ── Training ours ──


def build_clip():
    """-> clip.model.CLIP: ModifiedResNet on 64 x 64 images, a text transformer of 2 layers, 64-d embeddings."""
    model = import_clip().model.CLIP(
        embed_dim=64, image_resolution=64, vision_layers=(1, 1, 1, 1), vision_width=10, vision_patch_size=None,
        context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=2,
    )  # fmt: skip
    return model.float()


def noisy_captions(labels: torch.Tensor, words: list[list[list[int]]], known: set[int]) -> torch.Tensor:
    """labels (B,) -> tokens (B, 77): start, random tokens, one of the class's words, random tokens, end.

    Of known tokens only "a" and "I" are among the random ones too, since sentences about other letters have them.
    """
    start, end = 49406, 49407
    letters = [token for token in (320, 328) if token in known]  # "a" and "I"
    tokens = torch.zeros(len(labels), 77, dtype=torch.long)
    for row, y in zip(tokens, labels.tolist()):
        before, after, which = torch.randint(0, MAX_NOISE + 1, (3,)).tolist()
        noise = [t for t in torch.randint(0, start, (before + after,)).tolist() if t not in known]
        room = min(before, len(noise)) if words[y][0][-1] in letters else len(noise)  # the last of two letters counts
        for _ in range(int(torch.randint(3, (1,))) if letters and room else 0):
            noise[int(torch.randint(room, (1,)))] = letters[int(torch.randint(len(letters), (1,)))]
        caption = [start, *noise[:before], *words[y][which % len(words[y])], *noise[before:], end]
        row[: len(caption)] = torch.tensor(caption)
    return tokens


def jitter(images: torch.Tensor) -> torch.Tensor:
    """Turn, scale, shear and shift each image a little (B, 1, 28, 28): a few thousand are few."""
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
def class_vectors(clip: Clip, args: argparse.Namespace) -> torch.Tensor:
    """The mean text embedding of each class over the trained phrasings (C, dim): zero-shot, CLIP Sec. 3.1.4."""
    texts = common.phrasings(args, common.TRAIN_TEMPLATES)
    return F.normalize(torch.stack([clip.encode_text(t).mean(0) for t in texts]), dim=-1)


@torch.no_grad()
def measure(clip: Clip, args: argparse.Namespace, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Zero-shot accuracy on images, and the share of held-out phrasings whose nearest class is the one they name."""
    classes = class_vectors(clip, args)
    texts = common.phrasings(args, common.HELDOUT_TEMPLATES)
    asked = torch.cat([(clip.encode_text(group) @ classes.T).argmax(1) == y for y, group in enumerate(texts)])
    right = (clip.encode_image(images) @ classes.T).argmax(1) == labels.to(classes.device)
    return {"zero-shot": right.float().mean().item(), "held-out phrasings": asked.float().mean().item()}


def real_images(args: argparse.Namespace, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """-> images in [-1, 1], labels. Of MNIST the embedded ones, so that assets/tiny_clip.pt can be made again."""
    if args.dataset == "mnist" and loading.EMBEDDED.exists():
        pixels, labels = loading.embedded_mnist(split)
        return pixels[:, None].float() / 127.5 - 1, labels
    return common.load_dataset(args.dataset, args.data_dir, split, **common.which(args))[:2]


def train(args: argparse.Namespace, images: torch.Tensor, labels: torch.Tensor, steps: int, seed: int):
    """-> the trained model, in evaluation mode."""
    torch.manual_seed(seed)
    encode = import_clip().clip._tokenizer.encode
    words = [[encode(word) for word in pair] for pair in common.class_words(args.dataset, args.classes)]
    known = {token for pair in words for word in pair for token in word}
    texts = common.phrasings(args, common.TRAIN_TEMPLATES)
    tokens = torch.stack([import_clip().tokenize(group) for group in texts])  # (C, P, 77)
    classes = len(words)
    captions = max(CAPTIONS, min(2 * classes, MOST_CAPTIONS))

    model = build_clip().to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    y_text = torch.arange(captions) % classes
    for _ in (bar := common.Progress(range(steps), "tiny CLIP", unit="step", leave=False)):
        i = torch.randint(len(images), (IMAGES,))
        if classes > captions:  # as many captions as there is room for, those of the images first
            y_text = torch.cat([labels[i].unique(), torch.randperm(classes)])[:captions]
        image = clip_pixels(jitter(images[i]), model.visual.input_resolution)
        fixed = tokens[y_text, torch.randint(tokens.shape[1], (captions,))]
        text = torch.where(torch.rand(captions, 1) < P_NOISE, noisy_captions(y_text, words, known), fixed)
        same = labels[i, None] == y_text
        loss = contrastive_loss(model, image.to(args.device), text.to(args.device), same.to(args.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval()


def make(path: Path, args: argparse.Namespace, steps: int, seed: int) -> str:
    """Train one and write it to path; -> how well it reads what it never saw."""
    (images, labels), start = real_images(args, "train"), time.time()
    print(f"CLIP: training a tiny one for {args.dataset}, once; it will be kept at {path}", file=sys.stderr)
    model = train(args, images, labels, steps, seed).half()  # the file is mostly the table of 49,408 tokens
    state = {**model.state_dict(), "learned": [args.dataset, args.classes]}
    common.save_file(path, lambda file: torch.save(state, file))
    result = measure(Clip("tiny", path, args.device), args, *real_images(args, "test"))
    seen = ", ".join(f"{name} {share:.1%}" for name, share in result.items())
    size, seconds = path.stat().st_size / 1e6, time.time() - start
    return f"{path}: {size:.2f} MB, {seconds:.0f} s; accuracy on what it never saw: {seen}"


def main(argv: list[str] | None = None) -> None:
    parser = common.Parser("tiny_clip.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_flags(parser)
    parser.add_argument("--out", type=Path, help="the file to write (default: where the models look for it)")
    parser.add_argument("--train-steps", type=common.number(int, 1, 10**7), default=STEPS, help=f"default {STEPS}")
    parser.add_argument("--seed", type=common.number(int, 0, 2**31), default=0, help="default 0")
    parser.add_argument("--device", default="cpu", help="default cpu")
    args = parser.parse_args(argv)
    args.device = common.pick_device(args.device)
    loading.settle_classes(args, {})
    print(make(args.out or tiny_path(args), args, args.train_steps, args.seed))


if __name__ == "__main__":
    common.cli(main)
