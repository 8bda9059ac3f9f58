"""What models make of words that nobody trained: sentences.csv, sentences.png, cosines.png.

Command   python tests/bench_sentences.py     100 images of each prompt, by the study's seed 3
"""

import importlib
from collections import Counter

import numpy as np
import torch
from conftest import CPU, ROOT
from matplotlib.figure import Figure
from study import RESULTS, Task

import a1_cond
import a2_clip
import common
from kit import attributes, judge
from kit.captions import all_captions
from kit.files import save_table
from kit.pictures import save_figure, save_grid
from kit.samples import generate

MODELS = "a1_cond", "a2_clip", "a4_full", "cgan"
PROMPTS = (
    "a seven|a thick seven|a bold seven|a fat seven|a thin seven|a skinny seven|"
    "a seven leaning right|a slanted seven|a seven, thick and leaning left|a very thick seven|"
    "a seven that is not thick|not a seven|17|seventeen|a three and a seven|a big seven|"
    "七|画一个七|画一个seven|something|"
).split("|")  # the last one is empty
SHOWN = PROMPTS[:16]  # the fonts of a picture may have no Chinese signs
COMPARED = (
    "seven|7|eight|a thick seven|a thin seven|a bold seven|a skinny seven|a seven leaning left|"
    "a slanted seven|a thick seven leaning left|not a seven|17|seventeen"
).split("|")
N = 100


def rows_of(script: str, reader: judge.Judge) -> tuple[list[dict], list[np.ndarray]]:
    """-> a row for each prompt, and four images of each of SHOWN."""
    task, found, rows, shown = Task("mnist", script, 3), [], [], []
    common.save_outputs = lambda run, draw: found.extend((run, draw))
    here = [*task.flags, "--prompt", "seven", "--out", str(task.out)]
    importlib.import_module(script).main(here)
    run, draw = found
    words = [word for pair in run.saved["attributes"].values() for word in pair]
    for prompt in PROMPTS:
        pixels, _ = generate(run, draw, [prompt] * N, type(run.config).scale, prompt)
        values = attributes.measured(run.config, pixels)
        states = attributes.states(run.config, values, run.saved["attributes"])
        shares = np.stack([states == -1, states == 1], 2).mean(0).flatten()
        row = {"model": script, "prompt": prompt, "n": N} | dict(zip(words, shares))
        digits = Counter(reader.see(pixels)[1].tolist()).most_common(2)
        for place, (digit, count) in zip(("first", "second"), digits):
            row |= {f"{place}_digit": digit, f"{place}_share": count / N}
        rows.append(row)
        shown.append(pixels[:4])
    return rows, shown[: len(SHOWN)]


def save_cosines(encoders: dict) -> None:
    """Of COMPARED, as the models read them: without the mean of all training sentences."""
    config = a2_clip.Config()
    figure = Figure(figsize=(6.2, 6 * len(encoders)), layout="constrained")
    panels, places = figure.subplots(len(encoders)), range(len(COMPARED))
    words = [attributes.WORDS[name][:2] for name in attributes.measures_of(config)]
    for axes, (name, encoder) in zip(panels, encoders.items()):
        vectors = encoder.encode_text(COMPARED)
        vectors -= encoder.encode_text(all_captions(config, words)[0][::7]).mean(0)
        vectors = torch.nn.functional.normalize(vectors, dim=1)
        matrix = (vectors @ vectors.T).numpy()
        axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(matrix):
            style = {"ha": "center", "va": "center", "fontsize": 8}
            axes.text(column, row, f"{value:.1f}", color="kw"[int(value > 0.7)], **style)
        axes.set_xticks(places, COMPARED, rotation=90)
        axes.set_yticks(places, COMPARED)
        axes.set_title(name)
    save_figure(ROOT / "assets" / "cosines.png", figure, dpi=110)


def main() -> None:
    tiny = common.load_clip(a2_clip.Config(clip="tiny"), CPU)
    save_cosines({"bag of words (a1)": a1_cond.BagOfWords(), "CLIP: tiny": tiny})
    reader, rows, shown = judge.load_judge(a2_clip.Config(), CPU), [], {}
    for script in MODELS:
        found, shown[script] = rows_of(script, reader)
        rows += found
    save_table(RESULTS / "sentences.csv", rows, "%.4g")
    grid = np.concatenate([np.stack(shown[name]) for name in ("a1_cond", "a2_clip", "a4_full")], 1)
    titles = [name if i == 1 else "" for name in ("a1", "a2", "a4") for i in range(4)]
    path = ROOT / "assets" / "sentences.png"
    save_grid(path, grid.reshape(-1, 28, 28), 12, "", titles, SHOWN, inches=0.35)


if __name__ == "__main__":
    main()
