"""A small CLIP, trained from scratch in minutes: the text encoder where OpenAI's cannot be had.

Idea      Images and sentences about them meet in one space: what belongs together scores higher
          than all the rest.
Model     `clip.model.CLIP` itself at toy size, so this file and OpenAI's go through the same code.
Targets   A batch holds many images and many captions of each class, and every such pair is right
          (UniCL, Yang et al. 2022), not only the pairs of one image with one caption.
Captions  Most are the class word among random tokens. From fixed sentences the text side learns
          the sentences; among noise it can only learn to find the word, and so it understands
          phrasings it never saw.
Command   python -m kit.tiny_clip --dataset mnist --out my_clip.pt
          to draw with it: --clip my_clip.pt. --out assets/tiny_clip.pt replaces the repository's,
          and runs made with that are refused; other data sets have theirs in data/tiny_clip
Result    98.4 % zero-shot on 5,000 unseen digits, 240 of 240 held-out prompts (assets/README.md)
"""

import time
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from kit import attributes, datasets
from kit.base import (
    ROOT,
    Progress,
    UserError,
    cli,
    crc32,
    pick_device,
    reading,
    save_file,
    say,
    tell,
)
from kit.captions import Captions
from kit.clip import Clip, clip_pixels, import_clip
from kit.datasets import TRAIN_TEMPLATES, phrasings
from kit.flags import DataConfig, flag
from kit.images import EMBEDDED as DIGIT_IMAGES
from kit.images import embedded_mnist, jitter, load_dataset, to_images
from kit.locks import Halfway, check_own, make_once

EMBEDDED = ROOT / "assets" / "tiny_clip.pt"  # not there in a notebook
STEPS, IMAGES, OTHERS, LR = 2600, 40, 8, 2e-3  # images of a step, captions of other images
P_NAMELESS = 0.2  # share of captions among those with words that name no class
P_NOISE, MAX_NOISE = 0.75, 40  # share of captions among random tokens; most of these in one


# ── The one that a data set needs ──


def load_tiny(config, device: torch.device) -> Clip:
    """The tiny CLIP of just these images, trained now if it is not there."""
    file = tiny_path(config)
    if not file.is_file():
        made = make_once(file, "CLIP", lambda: make(file, config, device, STEPS, 0))
        if made:  # not by another process
            say(f"CLIP: {made}")
    return check_learned(Clip("tiny", file, device), file, config)


def tiny_path(config) -> Path:
    if config.dataset == "mnist" and EMBEDDED.parent.exists():
        return EMBEDDED
    # An earlier version made some without this word, which know no attributes.
    return config.data_dir / "tiny_clip" / f"words_{datasets.file_name(config)}"


def check_learned(clip: Clip, file: Path, config) -> Clip:
    """-> clip, unless it is one of ours that learned to read something else than config says."""
    embedded = ("mnist", datasets.DIGITS) if file.resolve() == EMBEDDED else None
    with reading(file, "it is damaged: train it again"):
        dataset, classes = clip.learned or embedded or (config.dataset, config.classes)
        classes = [name.strip() for name in classes]  # they are text
    if dataset != config.dataset or {*classes} != {*config.classes}:
        learned = f"{dataset} ({', '.join(classes[:4])}, ...)"
        raise UserError(f"{file} learned to read {learned}, not what is asked")
    return clip


# ── Training ours ──


def build_clip():
    """-> clip.model.CLIP: ModifiedResNet on 64 x 64 images, text transformer of 3 layers, 64-d."""
    image = {"image_resolution": 64, "vision_layers": (1, 1, 1, 1), "vision_width": 10}
    text = {"transformer_width": 64, "transformer_heads": 1, "transformer_layers": 3}
    tokens = {"context_length": 77, "vocab_size": 49408}
    clip = import_clip().model.CLIP
    return clip(embed_dim=64, vision_patch_size=None, **image, **tokens, **text).float()


# tokens: of all captions that are made of phrasings (S, 77). Token ids: names of each class its two
# words; words of each attribute the low and the high one; known all of these; letters "a" and "I"
Vocabulary = namedtuple("Vocabulary", "tokens names words known letters")


def vocabulary_of(config, captions: Captions) -> Vocabulary:
    encode = import_clip().clip._tokenizer.encode
    names = [[encode(word) for word in pair] for pair in datasets.class_words(config)]
    words = [[encode(word) for word in pair] for pair in captions.words]
    known = {token for pair in names + words for word in pair for token in word}
    letters = [token for token in (320, 328) if token in known]
    return Vocabulary(import_clip().tokenize(captions.sentences), names, words, known, letters)


def noise(n: int, vocabulary: Vocabulary, letters: bool) -> list[int]:
    """At most n random tokens. Of known ones only letters, since other sentences have them too."""
    found = torch.randint(0, 49406, (n,)).tolist()
    found = [token for token in found if token not in vocabulary.known]
    if letters and found and torch.rand(()) < 0.5:
        letter = int(torch.randint(len(vocabulary.letters), ()))
        found[int(torch.randint(len(found), ()))] = vocabulary.letters[letter]
    return found


def noisy_caption(name: list[int], words: list[list[int]], vocabulary: Vocabulary) -> torch.Tensor:
    """Tokens (77,): a class's name and the words of attributes, in any order, among random ones."""
    parts = [words[i] for i in torch.randperm(len(words))]
    place = int(torch.randint(len(parts) + 1, ()))
    parts.insert(place, name)
    room = min(MAX_NOISE, 75 - sum(map(len, parts)))
    most, caption = room // (len(parts) + 1), [49406]  # start
    for i, part in enumerate([*parts, [49407]]):  # end
        # Of two letters the last one counts.
        after_letter = i > place and name[-1:] and name[-1] in vocabulary.letters
        letters = bool(vocabulary.letters) and not after_letter
        caption += noise(int(torch.randint(most + 1, ())), vocabulary, letters) + part
    return F.pad(torch.tensor(caption), (0, 77 - len(caption)))


def captions_for(i: torch.Tensor, captions: Captions, vocabulary: Vocabulary):
    """Images i (I,) -> captions of them and of some others (J, 77), which fits which (I, J)."""
    j = torch.cat([i, captions.draw(OTHERS)])
    labels, said = captions.labels[j], captions.say(j)  # (J,), (J, attributes)
    tokens = vocabulary.tokens[captions.find(j, said)]  # (J, 77)
    noisy = torch.rand(len(j)) < P_NOISE
    # Some say attributes alone: so a word means the same beside every class.
    nameless = noisy & (said != 0).any(1) & (torch.rand(len(j)) < P_NAMELESS)
    for k in noisy.nonzero()[:, 0].tolist():
        name = vocabulary.names[labels[k]][int(torch.randint(2, ()))]
        words = [pair[x > 0] for pair, x in zip(vocabulary.words, said[k].tolist()) if x]
        tokens[k] = noisy_caption([] if nameless[k] else name, words, vocabulary)
    fits = (said == 0) | (said == captions.states[i, None])  # (I, J, attributes)
    return tokens, ((captions.labels[i, None] == labels) | nameless) & fits.all(2)


def contrastive_loss(
    model, images: torch.Tensor, tokens: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """CLIP's loss in both directions for images (I, 3, H, W) and captions (J, 77).

    same (I, J) tells which belong together.
    """
    image = F.normalize(model.encode_image(images), dim=-1)  # (I, 64)
    text = F.normalize(model.encode_text(tokens), dim=-1)  # (J, 64)
    scale = model.logit_scale.clamp(max=4.6052).exp()  # at most 100: CLIP Sec. 2.5
    logits = scale * image @ text.T  # (I, J)
    of_image = F.cross_entropy(logits, F.normalize(same.float(), p=1, dim=1))
    of_text = F.cross_entropy(logits.T, F.normalize(same.T.float(), p=1, dim=1))
    return (of_image + of_text) / 2


def train(config, device: torch.device, pixels: torch.Tensor, labels: torch.Tensor, steps: int,
          seed: int, file: Path):  # fmt: skip
    """pixels uint8 (N, 28, 28), labels (N,) -> the trained model, in evaluation mode.

    file: what it is for; beside it is kept how far the training has come.
    """
    torch.manual_seed(seed)
    captions = captions_of(config, pixels, labels)
    vocabulary = vocabulary_of(config, captions)
    model = build_clip().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    key = f"{config.dataset} {config.classes} {steps} {seed} {crc32(pixels.numpy()):08x}"
    training = Halfway(file, key, model=model, optimizer=optimizer, schedule=schedule)
    options = {"unit": "step", "total": steps, "initial": training.step, "leave": False}
    bar = Progress(training.steps(steps), "tiny CLIP", **options)
    for _ in bar:
        i = captions.draw(IMAGES)
        image = clip_pixels(jitter(to_images(pixels[i])), model.visual.input_resolution)
        text, same = captions_for(i, captions, vocabulary)
        loss = contrastive_loss(model, image.to(device), text.to(device), same.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    training.done()
    return model.eval()


def captions_of(config, pixels: torch.Tensor, labels: torch.Tensor, chosen=None) -> Captions:
    """chosen: attributes.thresholds(), else those of these pixels."""
    values = attributes.measured(config, pixels.numpy())
    chosen = attributes.thresholds(config, values) if chosen is None else chosen
    states = torch.from_numpy(attributes.states(config, values, chosen))
    return Captions(config, labels, states, chosen.values())


# ── Reading with it ──


@torch.no_grad()
def class_vectors(clip: Clip, config) -> torch.Tensor:
    """The mean text embedding of each class over the trained phrasings (C, dim).

    Zero-shot classification, CLIP Sec. 3.1.4.
    """
    texts = phrasings(config, TRAIN_TEMPLATES)
    return F.normalize(torch.stack([clip.encode_text(group).mean(0) for group in texts]), dim=-1)


@torch.no_grad()
def measure(clip: Clip, config, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Zero-shot accuracy on pixels; share of held-out phrasings nearest to the class they name."""
    classes = class_vectors(clip, config)
    asked = []
    for label, group in enumerate(phrasings(config, datasets.HELDOUT_TEMPLATES)):
        asked.append((clip.encode_text(group) @ classes.T).argmax(1) == label)
    seen = [clip.encode_image(to_images(part)) @ classes.T for part in pixels.split(1000)]
    right = torch.cat(seen).argmax(1) == labels.to(classes.device)
    shares = {"zero-shot": right, "held-out phrasings": torch.cat(asked)}
    return {name: share.float().mean().item() for name, share in shares.items()}


@torch.no_grad()
def measure_words(clip: Clip, config, captions: Captions, pixels: torch.Tensor) -> dict[str, float]:
    """Attribute word -> of the images that it fits, the share that are nearer to "{word} {class}"
    than to the same with the opposite word, in held-out phrasings.
    """
    vectors, shares = clip.encode_image(to_images(pixels)), {}
    for k, pair in enumerate(captions.words):
        scores = []
        for word in pair:
            texts = phrasings(config, datasets.HELDOUT_TEMPLATES, (word,))
            means = torch.stack([clip.encode_text(group).mean(0) for group in texts])  # (C, dim)
            scores.append((vectors * F.normalize(means, dim=-1)[captions.labels]).sum(1))
        for word, state, sign in zip(pair, (-1, 1), (1, -1)):
            fits = captions.states[:, k] == state
            shares[word] = (sign * (scores[0] - scores[1]) > 0)[fits].float().mean().item()
    return shares


# ── A file of it ──


def real_images(config, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """-> pixels, labels. Of MNIST the embedded: assets/tiny_clip.pt was made of them."""
    if config.dataset == "mnist" and DIGIT_IMAGES[split].exists():
        return embedded_mnist(split)
    return load_dataset(config, split)[:2]


def make(file: Path, config, device: torch.device, steps: int, seed: int) -> str:
    """Train one and write it to a file; -> how well it reads what it never saw."""
    pixels, labels = real_images(config, "train")
    start = time.time()
    what = f"training a tiny one for {config.dataset}, once; it will be kept at {file}"
    say(f"CLIP: {what}")
    # In half precision, since most of the file is the table of 49,408 tokens.
    model = train(config, device, pixels, labels, steps, seed, file).half()
    state = {**model.state_dict(), "learned": [config.dataset, config.classes]}
    save_file(file, lambda content: torch.save(state, content))
    clip, held_out = Clip("tiny", file, device), real_images(config, "test")
    chosen = attributes.thresholds(config, attributes.measured(config, pixels.numpy()))
    result = measure(clip, config, *held_out)
    result |= measure_words(clip, config, captions_of(config, *held_out, chosen), held_out[0])
    seen = ", ".join(f"{name} {share:.1%}" for name, share in result.items())
    size, seconds = file.stat().st_size / 1e6, time.time() - start
    return f"{file}: {size:.2f} MB, {seconds:.0f} s; accuracy on what it never saw: {seen}"


@dataclass
class Config(DataConfig):
    out: Path | None = flag(None, "the file to write (where the models look for it)")
    train_steps: int = flag(STEPS, "optimiser steps", 1, 10**7)
    seed: int = flag(0, "of the training", 0, 2**31)
    device: str = flag("cpu", "cpu, cuda, ...")


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    datasets.settle_classes(config)
    device = pick_device(config.device)
    file = config.out or tiny_path(config)
    what = "a CLIP that this has trained"
    check_own(file, config.out is not None, what, lambda: Clip("", file, device).learned)
    steps, seed = config.train_steps, config.seed
    tell(make_once(file, "CLIP", lambda: make(file, config, device, steps, seed), again=True))


if __name__ == "__main__":
    cli(main)
