"""Grids of images, curves of losses, and what a script saves beside its checkpoint."""

import math
import re
import textwrap
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from matplotlib import cycler, font_manager, rcdefaults, rcParams, ticker
from matplotlib.figure import Figure

from kit import words
from kit.captions import combinations, words_of
from kit.data import load_dataset, to_images, to_pixels
from kit.files import RANK, save_arrays, save_file, say
from kit.run import Run, sampled_alike
from kit.samples import PLAIN, generate, generators_of, load_samples, save_samples

# Okabe & Ito's palette, which colour-blind readers can distinguish too.
COLORS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#882255"
FILM_SCALES = 0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0  # guidance scales in film.npz


def use_plain_style() -> None:
    """Ignore the user's matplotlibrc, find fonts for Chinese, and show $ as it is."""
    names = sorted({font.name for font in font_manager.fontManager.ttflist})
    asian = [name for name in names if re.search("CJK|Hei|Gothic|PingFang|Arial Unicode", name)]
    rcdefaults()
    rcParams.update({"font.family": ["DejaVu Sans", *asian], "text.parse_math": False})
    rcParams["axes.prop_cycle"] = cycler(color=COLORS)
    warnings.filterwarnings("ignore", "Glyph .* missing from")


def save_figure(path: Path, figure: Figure, **style) -> Path:
    save_file(path, lambda file: figure.savefig(file, format="png", **style))
    return path


def save_grid(path: Path, pixels, columns: int, title="", titles=(), captions=(), inches=0.3):
    """pixels: images uint8 (28, 28), row by row. titles: of columns; captions: of rows."""
    use_plain_style()
    rows, margins = math.ceil(len(pixels) / columns), ((0, -len(pixels) % columns), (1, 1), (1, 1))
    canvas = np.pad(pixels, margins, constant_values=255)  # white between the images
    canvas = canvas.reshape(rows, columns, 30, 30).swapaxes(1, 2).reshape(30 * rows, 30 * columns)
    axes = Figure(figsize=(inches * columns, inches * rows), dpi=200).add_axes((0, 0, 1, 1))
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    upright = 90 * (max(map(len, titles), default=0) > 20 * inches)
    middle = np.arange(max(rows, columns)) * 30 + 15
    axes.set_xticks(middle[: len(titles)], titles, rotation=upright)
    axes.set_yticks(middle[: rows : rows // (len(captions) or rows)][: len(captions)], captions)
    axes.tick_params(length=0, pad=2, labelsize=7, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    lines = textwrap.wrap(textwrap.shorten(title, 300), max(20, int(15 * inches * columns)))
    axes.set_title("\n".join(lines), fontsize=7)
    save_figure(path, axes.figure, bbox_inches="tight", pad_inches=0.05)  # with text outside


def save_loss_plot(path: Path, losses: dict[str, list[dict]], colors: dict[str, str]) -> Path:
    """losses: model -> rows of loss.csv. Faint: as logged; bold: a moving average of 15 rows."""
    use_plain_style()
    kinds = sorted({x != "loss" for rows in losses.values() for x in rows[0] if "loss" in x})
    figure = Figure(figsize=(4 + 4 * len(kinds), 4), layout="constrained")
    panels = dict(zip(kinds, figure.subplots(1, len(kinds), squeeze=False)[0]))
    for model, rows in losses.items():
        color = colors.get(model, COLORS[0])
        for name, style in zip([x for x in rows[0] if "loss" in x], ("-", "--", ":")):
            step, loss = (np.array([float(row[x]) for row in rows]) for x in ("step", name))
            width, axes = max(1, min(15, len(loss) // 3)), panels[name != "loss"]
            axes.plot(step, loss, color=color, alpha=0.25)
            mean = np.convolve(loss, np.ones(width) / width, "valid")
            label = f"{model}, {name.replace('_', ' ')}"
            axes.plot(step[width // 2 :][: len(mean)], mean, style, color=color, label=label)
            axes.set(xlabel="training step", ylabel="loss (diffusion: MSE of v)", yscale="log")
            plain_log_scale(axes.yaxis)
    figure.legend(loc="outside right upper", fontsize=8)
    return save_figure(path, figure, dpi=150)


def plain_log_scale(axis) -> None:
    """Plain numbers as labels: powers of ten need parse_math, which is off."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
    axis.axes.grid(alpha=0.3)


def with_scale(text: str, guided: bool, scale: float) -> str:
    return f"{text}; guidance scale {scale:g}" if guided else text


def shown_classes(classes: int, n: int) -> np.ndarray:
    """The classes that a grid of n images has a column for: all, or 26 spread over them."""
    return np.linspace(0, min(classes, n) - 1, min(classes, n, 26)).round().astype(int)


def complete(run: Run) -> bool:
    """Whether everything a run saves is on disk; prints that it is. Always False with --prompt."""
    config, names = run.config, ["samples.npz", "samples.png", "denoising.png"]
    names += ["prompts.png"] * config.has("prompt") + ["film.npz"] * config.has("scales")
    names += ["reconstructions.png"] * (config.family == "VAE")
    done = run.step == config.train_steps and config.prompt is None and sampled_alike(config)
    done = done and all((run.images / name).exists() for name in ["../config.json", *names])
    if done and words.data_kind(config) == "folder" and run.load_data():
        run.check(run.facts)  # its pictures may be others now
    if done:
        say(f"{run.folder} is complete; --fresh starts over")
    return done


def save_outputs(run: Run, draw, reconstruct=None) -> None:
    """Save the samples and pictures of a run; with --prompt, one picture.

    draw(prompts, scale, generators, film) -> images (n, 1, 28, 28) in [-1, 1]; it appends (title,
    images) to the list film. reconstruct(images, prompts) -> an autoencoder's reconstructions.
    """
    if run.config.prompt is not None:
        save_prompt_picture(run, draw)
    elif RANK == 0:
        run.begin()
        save_loss_plot(run.folder / "plots" / "loss.png", {run.config.script: run.rows}, {})
        save_samples(run, draw)
        save_samples_picture(run)
        save_prompts_pictures(run, draw)
        if reconstruct is not None:
            save_reconstructions(run, reconstruct)
        run.lock.release()


def save_prompt_picture(run: Run, draw) -> None:
    """--prompt: save a picture of --n images and print its path."""
    config, prompt = run.config, run.config.prompt
    if not words.names_a_class(config, prompt):
        say(f"note: the prompt names no class, such as {config.classes[0]}")
    if run.embedded:
        say(f"using {run.last}; python {config.script}.py trains your own weights")
    if run.step < run.saved["train_steps"]:
        say(f"note: only {run.step} of {run.saved['train_steps']} training steps are done")
    pixels, _ = generate(run, draw, [prompt] * config.n, config.scale, "generating")
    slug = re.sub(r"\W+", "_", prompt.lower(), flags=re.ASCII)[:40].strip("_")
    path = run.images / f"prompt_{slug}_{zlib.crc32(str(config.choices()).encode()):08x}.png"
    title = with_scale(prompt, config.has("scales"), config.scale)
    save_grid(path, pixels, math.ceil(config.n**0.5), title, inches=0.6)
    print(path)


def shown_prompts(run: Run) -> list[str]:
    """12 prompts, alternating trained and held-out phrasings; the last six have attribute words."""
    config, kind, prompts = run.config, words.data_kind(run.config), []
    trained, heldout = words.TRAIN_TEMPLATES[kind][1:], words.HELDOUT_TEMPLATES[kind]
    pairs = [tuple(pair) for pair in run.saved.get("attributes", {}).values()]
    asked = combinations(len(pairs))[1:] or [()]
    for i in range(12):
        said = words_of(pairs, asked[i % 6 % len(asked)]) if i >= 6 else ()
        nouns = words.class_words(config, said)
        template = (heldout if i % 2 else trained)[i // 2]
        prompts.append(template.format(nouns[i % len(nouns)][i // 3 % 2]))
    return prompts if config.has("prompt") else [""] * 12


def frames_of(run: Run, draw, prompts, scale: float, numbers, most: int):
    """-> uint8 (prompts, views, steps, 28, 28), and titles of the steps; views: x_t, x0_hat."""
    film = []
    draw(prompts, scale, generators_of(run.config.seed, numbers), film)
    chosen = np.linspace(0, len(film) - 1, min(most, len(film))).round().astype(int)
    titles, *views = zip(*(film[i] for i in chosen))
    views = [np.stack([to_pixels(images) for images in view], 1) for view in views]
    return np.stack(views, 1), [*map(str, titles)]


def save_prompts_pictures(run: Run, draw) -> None:
    """denoising.png: steps of six images; prompts.png; film.npz, for the sliders of the report."""
    config, scale, prompts = run.config, type(run.config).scale, shown_prompts(run)
    frames, titles = frames_of(run, draw, prompts[:6], scale, range(6), 11)
    strip, path = frames.reshape(-1, 28, 28), run.images / "denoising.png"
    save_grid(path, strip, len(titles), config.film, titles, prompts[:6])
    if config.has("prompt"):
        repeated = [prompt for prompt in prompts for _ in range(8)]
        pixels, _ = generate(run, draw, repeated, scale, "prompts.png")
        captions = [f"{prompt} *" if i % 2 else prompt for i, prompt in enumerate(prompts)]
        title = with_scale("* = a held-out phrasing", config.has("scales"), scale)
        save_grid(run.images / "prompts.png", pixels, 8, title, captions=captions)
    if config.has("scales"):
        asked = [prompts[i] for i in (0, 2, 4, 8, 10, 9)]
        films = [frames_of(run, draw, asked, scale, [0] * 6, 21) for scale in FILM_SCALES]
        arrays = {"frames": np.stack([frames for frames, _ in films], 1), "prompts": asked}
        arrays |= {"scales": FILM_SCALES, "moments": [f"t = {t}" for t in films[0][1]]}
        save_arrays(run.images / "film.npz", arrays)


def save_reconstructions(run: Run, reconstruct) -> None:
    """reconstructions.png: at least ten held-out images, and their reconstructions."""
    config, (pixels, labels, _) = run.config, load_dataset(run.config, "test")
    shown = shown_classes(len(config.classes), len(pixels)).tolist()
    chosen = torch.cat([(labels == y).nonzero()[: 1 + 9 // len(shown), 0] for y in shown])
    pixels, labels = pixels[chosen], labels[chosen].tolist()
    texts = words.phrasings(config, words.TRAIN_TEMPLATES)
    prompts = [texts[label][0] for label in labels]
    images = reconstruct(to_images(pixels).to(run.device), prompts)
    titles, rows = [config.classes[label] for label in labels], ("held out", "reconstructed")
    strip, path = np.concatenate([pixels, to_pixels(images)]), run.images / "reconstructions.png"
    save_grid(path, strip, len(labels), config.script, titles, rows, inches=0.35)


def save_samples_picture(run: Run) -> None:
    """samples.png: ten images of each class, at the middle guidance scale."""
    config, table = run.config, load_samples(run.images / "samples.npz")
    scale, names = sorted(config.scales)[len(config.scales) // 2], config.classes
    plain = np.isin(table["kind"], PLAIN) & (table["scale"] == scale)
    shown = shown_classes(len(names), plain.sum())
    order = (np.arange(10)[:, None] * len(names) + shown).flatten()
    pixels = table["images"][plain][order[order < plain.sum()]]
    titles = [names[label] for label in shown] if config.has("prompt") else []
    title = with_scale(config.script, config.has("scales"), scale)
    save_grid(run.images / "samples.png", pixels, len(shown), title, titles, inches=0.4)
