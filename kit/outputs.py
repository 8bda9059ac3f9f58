"""What a script saves beside its checkpoint: samples, pictures, a film for the report."""

import math
import re
import zlib
from pathlib import Path

import numpy as np
import torch

from kit.captions import combinations, words_of
from kit.data import load_dataset, to_images, to_pixels
from kit.files import RANK, save_arrays, say
from kit.pictures import save_grid, save_loss_plot, shown_classes, with_scale
from kit.run import Run
from kit.samples import generate, generators_of, load_samples, save_samples
from kit.words import (
    HELDOUT_TEMPLATES,
    TRAIN_TEMPLATES,
    class_words,
    data_kind,
    names_a_class,
    phrasings,
)

FILM_SCALES = 0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0  # of film.npz


def paths_of(run: Run) -> list[Path]:
    """The files of a complete run, besides its checkpoint."""
    config, names = run.config, ["samples.npz", "samples.png", "denoising.png"]
    names += ["prompts.png"] * config.has("prompt") + ["film.npz"] * config.has("scales")
    names += ["reconstructions.png"] * (config.family == "VAE")
    others = [run.folder / "plots" / "loss.png", run.metrics / "performance.csv"]
    return [run.images / name for name in names] + others


def complete(run: Run) -> bool:
    """Whether all outputs are on disk; if so, says it. Never so with --prompt."""
    trained = run.step == run.config.train_steps and run.sampled_alike()
    if run.config.prompt is not None or not trained or not all(x.exists() for x in paths_of(run)):
        return False
    say(f"{run.folder} is complete; --fresh starts over")
    return True


def save_outputs(run: Run, draw, reconstruct=None) -> None:
    """Save the samples and pictures of a run; with --prompt, one picture.

    draw(prompts, scale, generators, film) -> images (n, 1, 28, 28) in [-1, 1]; it appends (title,
    images) to the list film, if there is one. reconstruct(images, prompts) -> what an autoencoder
    makes of images.
    """
    if RANK > 0:
        return
    if run.config.prompt is not None:
        save_prompt_picture(run, draw)
        return
    run.begin()
    save_samples(run, draw)
    save_samples_picture(run)
    if run.config.has("prompt"):
        save_prompts_picture(run, draw)
    save_denoising_picture(run, draw)
    if run.config.has("scales"):
        save_film(run, draw)
    if reconstruct is not None:
        save_reconstructions(run, reconstruct)
    save_loss_plot(run.folder / "plots" / "loss.png", {run.config.script: run.rows})
    run.lock.release()


def save_prompt_picture(run: Run, draw) -> None:
    """--prompt: save a picture of --n images and print its path."""
    config, steps = run.config, run.saved["train_steps"]
    if not names_a_class(config, config.prompt):
        known = ", ".join(word for pair in class_words(config)[:2] for word in pair)
        say(f"note: the prompt names no class that the model was trained on: {known}, ...")
    if run.shipped:
        say(f"using the trained weights {run.last}; to train your own: "
            f"python {config.script}.py --dataset {config.dataset}")  # fmt: skip
    if run.step < steps:
        say(f"note: the model is trained for {run.step} of {steps} steps so far")
    pixels, _ = generate(run, draw, [config.prompt] * config.n, config.scale, "generating")
    words = re.sub(r"\W+", "_", config.prompt.lower(), flags=re.ASCII)[:40].strip("_")
    drawn = {
        name: getattr(config, name) for name in sorted(config.SAMPLING) if hasattr(config, name)
    }
    key = f"{config.prompt} {config.n} {config.seed} {drawn}"
    name = f"prompt_{words}_scale{config.scale:g}_seed{config.seed}_{zlib.crc32(key.encode()):08x}"
    title = with_scale(config.prompt, config.has("scales"), config.scale)
    columns, path = math.ceil(config.n**0.5), run.images / f"{name}.png"
    save_grid(path, pixels, columns, title, inches=0.6)
    print(path)


def shown_prompts(run: Run) -> list[str]:
    """12 prompts, trained and held-out phrasings in turn; without text "".

    The last six contain attribute words, if the run has attributes.
    """
    config, prompts = run.config, []
    if not config.has("prompt"):
        return [""] * 12
    trained, heldout = TRAIN_TEMPLATES[data_kind(config)][1:], HELDOUT_TEMPLATES[data_kind(config)]
    pairs = [tuple(words) for words in run.saved.get("attributes", {}).values()]
    asked = combinations(len(pairs))[1:] or [()]
    for i in range(12):
        said = words_of(pairs, asked[i % 6 % len(asked)]) if i >= 6 else ()
        words = class_words(config, said)
        template = (heldout if i % 2 else trained)[i // 2]
        prompts.append(template.format(words[i % len(words)][i // 3 % 2]))
    return prompts


def save_prompts_picture(run: Run, draw) -> None:
    """prompts.png: eight images for each of shown_prompts(), at the default scale."""
    config, scale, prompts = run.config, type(run.config).scale, shown_prompts(run)
    repeated = [prompt for prompt in prompts for _ in range(8)]
    pixels, _ = generate(run, draw, repeated, scale, "prompts.png")
    captions = [f"{prompt} *" if i % 2 else prompt for i, prompt in enumerate(prompts)]
    title = with_scale(config.script, config.has("scales"), scale)
    title += "; * = a phrasing never trained on"
    save_grid(run.images / "prompts.png", pixels, 8, title, captions=captions)


def save_denoising_picture(run: Run, draw) -> None:
    """denoising.png: how six images come about, at most 11 moments of each."""
    config, prompts, film = run.config, shown_prompts(run)[:6], []
    draw(prompts, type(config).scale, generators_of(config.seed, range(6)), film)
    moments = np.linspace(0, len(film) - 1, min(11, len(film))).round().astype(int)
    titles = [str(film[i][0]) for i in moments]
    frames = np.stack([to_pixels(film[i][1]) for i in moments], 1)  # (6, moments, 28, 28)
    strip = frames.reshape(-1, *frames.shape[2:])
    save_grid(run.images / "denoising.png", strip, len(titles), config.film, titles, prompts)


def save_film(run: Run, draw) -> None:
    """film.npz: one noise, and what becomes of it. For the sliders of compare.py's report.

    frames uint8 (prompts, scales, moments, 28, 28), prompts, scales, moments.
    """
    shown, frames = shown_prompts(run), []
    prompts = [shown[i] for i in (0, 2, 4, 8, 10, 9)]
    for scale in FILM_SCALES:
        film = []
        draw(prompts, scale, generators_of(run.config.seed, [0] * len(prompts)), film)
        chosen = np.linspace(0, len(film) - 1, min(21, len(film))).round().astype(int)
        frames.append(np.stack([to_pixels(film[i][1]) for i in chosen], 1))
    moments = [f"{i} of {len(film) - 1}, t = {film[i][0]}" for i in chosen]
    arrays = {"frames": np.stack(frames, 1), "prompts": np.array(prompts)}
    arrays |= {"scales": np.array(FILM_SCALES), "moments": np.array(moments)}
    save_arrays(run.images / "film.npz", arrays)


def save_reconstructions(run: Run, reconstruct) -> None:
    """reconstructions.png: held-out images, two of each class or one, and their reconstructions."""
    names = run.config.classes
    pixels, labels, _ = load_dataset(run.config, "test")
    shown = shown_classes(len(names), len(pixels))
    each = 2 if len(shown) <= 13 else 1
    chosen = torch.cat([(labels == label).nonzero()[:each, 0] for label in shown.tolist()])
    texts = phrasings(run.config, TRAIN_TEMPLATES)
    prompts = [texts[label][0] for label in labels[chosen].tolist()]
    images = reconstruct(to_images(pixels[chosen]).to(run.device), prompts)
    strip = np.concatenate([pixels[chosen].numpy(), to_pixels(images)])
    titles = [names[label] for label in labels[chosen].tolist()]
    captions, title = ("held-out images", "reconstructions"), f"{run.config.script}: autoencoder"
    path = run.images / "reconstructions.png"
    save_grid(path, strip, len(chosen), title, titles, captions, inches=0.35)


def save_samples_picture(run: Run) -> None:
    """samples.png: ten images of each class, at the middle one of the scales."""
    config, table = run.config, load_samples(run.images / "samples.npz")
    scale = sorted(config.scales)[len(config.scales) // 2]
    plain = np.isin(table["kind"], ("trained", "unconditional")) & (table["scale"] == scale)
    pixels, names = table["images"][plain], config.classes
    shown = shown_classes(len(names), len(pixels))
    title, titles = with_scale(config.script, config.has("scales"), scale), []
    order = np.arange(10 * len(shown))
    if config.has("prompt"):
        titles = [names[label] for label in shown]
        order = (np.arange(10)[:, None] * len(names) + shown).flatten()
        title += f"; {len(shown)} of {len(names)} classes" if len(shown) < len(names) else ""
    longest = max(map(len, titles), default=0)
    inches = 0.3 if len(shown) > 13 else min(0.6, max(0.3, longest / 18))  # so that titles fit
    pixels = pixels[order[order < len(pixels)]]
    save_grid(run.images / "samples.png", pixels, len(shown), title, titles, inches=inches)
