"""What a run draws and shows; and all models of a data set side by side, from what their runs saved.

Command   python compare.py --dataset mnist
Writes    results/mnist/compare/grid.png and loss.png from every model found in results/mnist; prints how many images
          show what was asked for, as the embedded CLIP reads them
"""

import argparse
import math
import re
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import common
import evaluate
import tiny_clip

COLORS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"  # Okabe & Ito: for colour-blind eyes too


def save_grid(path: Path, pixels, columns: int, title="", titles=(), captions=(), inches=0.3) -> None:
    """pixels: images uint8 (28, 28), row by row. titles stand over the columns, captions left of the rows."""
    rows, tile = math.ceil(len(pixels) / columns), 30
    blank = np.full((rows * columns, tile, tile), 255, np.uint8)
    blank[: len(pixels), 1:-1, 1:-1] = pixels
    canvas = blank.reshape(rows, columns, tile, tile).swapaxes(1, 2).reshape(rows * tile, columns * tile)
    width = inches * columns + 0.085 * max(map(len, captions), default=0)
    lines = textwrap.wrap(title, max(12, int(width / 0.065)))
    height = inches * rows + 0.12 * len(lines) + 0.18 * bool(titles) + 0.05
    figure = Figure(figsize=(width + 0.1, height + 0.1), dpi=200)
    axes = figure.add_axes((1 - inches * columns / width, 0, inches * columns / width, inches * rows / height))
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    style = {"fontsize": 7, "parse_math": False}  # a prompt may hold a $, which is no mathematics
    middle = np.arange(max(rows, columns)) * tile + tile / 2
    axes.set_xticks(middle[: len(titles)], titles, **style)
    axes.set_yticks(middle[: len(captions)], captions, **style)
    axes.tick_params(length=0, pad=2, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.suptitle("\n".join(lines), y=1, va="top", **style)
    common.save_file(
        path, lambda file: figure.savefig(file, format="png", dpi=200, bbox_inches="tight", pad_inches=0.05)
    )


def save_loss_plot(path: Path, curves: dict[str, Path]) -> None:
    """curves: model -> its loss.csv; the raw curve faint, over it the mean of the last 15 rows."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    logs = {model: log for model, file in curves.items() if (log := common.read_csv(file))}
    lines = [(model, name) for model, log in logs.items() for name in log[0] if name.endswith("loss")]
    for (model, name), color in zip(lines, COLORS * len(lines)):
        step, loss = np.array([(int(row["step"]), float(row[name])) for row in logs[model]]).T
        width, label = min(15, len(loss)), model if name == "loss" else f"{model}, {name.replace('_', ' ')}"
        axes.plot(step, loss, color=color, alpha=0.25)
        axes.plot(step[width - 1 :], np.convolve(loss, np.ones(width) / width, "valid"), color=color, label=label)
    ylabel = "denoising loss: MSE of v" if all(name == "loss" for _, name in lines) else "loss"
    axes.set(xlabel="training step", ylabel=ylabel, yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    common.save_file(path, lambda file: figure.savefig(file, format="png", dpi=150))


def complete(run: common.Run) -> bool:
    """Whether all of the run is on disk; if so, says it."""
    names = "images/samples.png images/denoising.png plots/loss.png metrics/performance.csv".split()
    names += [] if common.meaningless(run.args.script, "prompt") else ["images/prompts.png"]
    outputs = [*evaluate.sample_files(run), *(run.folder / name for name in names)]
    done = run.step == run.args.train_steps and run.drawn_alike() and all(path.exists() for path in outputs)
    if done:
        print(f"{run.folder} is complete; --fresh starts over", file=sys.stderr)
    return done


def save_outputs(run: common.Run, draw) -> None:
    """All that a run leaves beside its checkpoint; with --prompt, one picture.

    draw(prompts, scale, generator, film) -> images (n, 1, 28, 28) in [-1, 1]; film, a list, collects (title, images).
    """
    if run.args.prompt is not None:
        save_prompt_picture(run, draw)
    else:
        run.begin()
        evaluate.save_samples(run, draw)
        save_run_pictures(run, draw)


def with_scale(text: str, script: str, scale: float) -> str:
    """Pictures name the guidance scale only where there is guidance."""
    return text if common.meaningless(script, "scale") else f"{text}, guidance scale {scale:g}"


def save_prompt_picture(run: common.Run, draw) -> None:
    """--prompt: save a picture of --n images and print its path."""
    args = run.args
    slug = re.sub(r"\W+", "_", args.prompt.lower())[:40].strip("_") + f"_{zlib.crc32(args.prompt.encode()):08x}"
    path = (
        run.images
        / f"prompt_{slug}_w{args.scale:g}_n{args.n}_seed{args.seed}_steps{args.sample_steps}_eta{args.eta:g}.png"
    )
    words = [word for group in common.CLASS_WORDS[args.dataset] for word in group]
    if not any(re.search(rf"\b{re.escape(word)}\b", args.prompt, re.IGNORECASE) for word in words):
        print(f"note: the prompt names nothing the model was trained on ({', '.join(words[:4])}, ...)", file=sys.stderr)
    if run.step < run.config["train_steps"]:
        print(f"note: the model is trained to step {run.step} of {run.config['train_steps']} only", file=sys.stderr)
    pixels = evaluate.draw_all(run, draw, [args.prompt] * args.n, args.scale, "drawing")
    title = with_scale(args.prompt, args.script, args.scale)
    save_grid(path, pixels, math.ceil(args.n**0.5), title, inches=0.6)
    print(path)


def save_run_pictures(run: common.Run, draw) -> None:
    """samples.png from the samples on disk, prompts.png and denoising.png drawn anew, loss.png from loss.csv."""
    dataset, scale = run.args.dataset, evaluate.heldout_scale(run)
    script, names = run.args.script, [words[0] for words in common.CLASS_WORDS[dataset]]
    templates = zip(common.TRAIN_TEMPLATES[dataset][1:], common.HELDOUT_TEMPLATES[dataset])
    pairs = enumerate(pair for both in templates for pair in zip(both, ("", " *")))
    picked = [(t.format(common.CLASS_WORDS[dataset][i % len(names)][i // 3 % 2]), mark) for i, (t, mark) in pairs][:12]
    prompts, captions = [prompt for prompt, _ in picked], [prompt + mark for prompt, mark in picked]
    columns = len(names)
    if common.meaningless(script, "prompt"):
        prompts, names = [""] * 6, ()
    else:
        pixels = evaluate.draw_all(run, draw, [prompt for prompt in prompts for _ in range(8)], scale, "prompts.png")
        title = with_scale(script, script, scale) + "; * = a phrasing never trained on"
        save_grid(run.images / "prompts.png", pixels, 8, title, captions=captions)

    film = []
    draw(prompts[:6], scale, torch.Generator().manual_seed(run.args.seed), film)
    frames = [film[i] for i in np.linspace(0, len(film) - 1, min(11, len(film))).round().astype(int)]
    strip = [evaluate.to_pixels(images)[row] for row in range(6) for _, images in frames]
    to_image = "x_t, from noise (t = 1000) to the image (t = 0)"
    what = "a walk from one z to another" if script == "cgan" else to_image
    save_grid(run.images / "denoising.png", strip, len(frames), what, [str(t) for t, _ in frames], prompts[:6])
    save_loss_plot(run.folder / "plots" / "loss.png", {script: run.metrics / "loss.csv"})
    w = run.args.scales[len(run.args.scales) // 2]
    with np.load(run.images / f"samples_w{w}.npz") as file:
        pixels, title = file["images"][: 10 * columns], with_scale(script, script, w)
    save_grid(run.images / "samples.png", pixels, columns, title, names)


def main(argv: list[str] | None = None) -> None:
    parser = common.Parser("compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist", choices=list(common.CLASS_WORDS), help="default mnist")
    parser.add_argument("--out", type=Path, default=Path("results"), help="where runs are kept (default results)")
    args = parser.parse_args(argv)
    folder = args.out / args.dataset
    files = sorted(folder.glob("[!.]*/images/samples_*.npz"))
    if not files:
        raise common.UserError(f"no samples in {folder}; first: python a4_full.py --dataset {args.dataset}")
    clip = tiny_clip.load_clip("tiny", torch.device("cpu"))
    classes, rows, captions = tiny_clip.class_vectors(clip, args.dataset), [], []
    for path in files:
        try:
            with np.load(path) as file:
                pixels, labels = file["images"], torch.from_numpy(file["labels"])
        except (*common.UNREADABLE, zipfile.BadZipFile) as error:
            raise common.UserError(f"{path} is damaged ({common.one_line(error)}); delete it and run again") from None
        best = (clip.encode_image(evaluate.to_images(pixels)) @ classes.T).argmax(1)
        if "heldout" not in path.name:  # the others were all asked for the same, or for nothing
            rows.append(pixels[:20])
            model, scale = path.parts[-3], float(path.stem.split("_w")[1])
            captions.append(with_scale(model, model, scale) + " (asked for nothing)" * (labels.min() < 0).item())
        if labels.min() >= 0:
            share = (best == labels).float().mean()
            print(f"{path}: {share:.1%} of {len(labels)} are what was asked for, as the embedded CLIP reads them")
    columns = min(map(len, rows))
    pixels = np.concatenate([row[:columns] for row in rows])
    titles = [common.CLASS_WORDS[args.dataset][i % len(classes)][0] for i in range(columns)]
    save_grid(folder / "compare" / "grid.png", pixels, columns, titles=titles, captions=captions, inches=0.35)
    models = {path.parts[-3]: path.parents[1] / "metrics" / "loss.csv" for path in files}
    save_loss_plot(folder / "compare" / "loss.png", models)
    print(f"{folder / 'compare'}: grid.png, loss.png")


if __name__ == "__main__":
    common.cli(main)
