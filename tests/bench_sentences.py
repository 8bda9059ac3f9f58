"""What each script makes of words that nobody trained. No test: it draws with the runs on disk.

python tests/bench_sentences.py                    the runs in results/mnist; a1 and tiny CLIP
python tests/bench_sentences.py --clip ViT-B/32    and how OpenAI's CLIP reads the same prompts

Draws 100 images of every prompt below with each run, at its default guidance scale: which digit
the judge reads, and by formula how many are thin, thick, leaning. It writes
docs/results/sentences.csv, assets/sentences.png and assets/cosines.png. Then 1,000 images of each
combination of trained words with a4, so that shares are known to 1 %: docs/results/words.csv.
"""

import argparse
import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT, data_args
from matplotlib.figure import Figure

import a1_cond
import common
from kit import attributes, encoders, judge, metrics
from kit.base import save_file, save_table
from kit.captions import Captions, words_of
from kit.pictures import save_grid
from kit.run import encode_once
from kit.samples import draw_all, heldout_scale, prompts_of

MODELS = "a1_cond", "a2_clip", "a3_cfg", "a4_full", "cgan"
PROMPTS = (
    "a seven|a thick seven|a bold seven|a fat seven|a thin seven|a skinny seven|"
    "a seven leaning right|a slanted seven|a seven, thick and leaning left|a very thick seven|"
    "a seven that is not thick|not a seven|17|seventeen|a three and a seven|a big seven|"
    "七|画一个七|画一个seven|something|"
).split("|")  # the last one is empty
SHOWN = PROMPTS[:16]  # the fonts of a picture have no Chinese signs
COMPARED = (
    "seven|7|eight|a thick seven|a thin seven|a bold seven|a skinny seven|a seven leaning left|"
    "a slanted seven|a thick seven leaning left|not a seven|17|seventeen"
).split("|")
N = 100


def drawer(script: str):
    """-> the run of a script in results/mnist, and its draw()."""
    found = []
    common.save_outputs = lambda run, draw: found.extend((run, draw))
    importlib.import_module(script).main(["--dataset", "mnist", "--prompt", "seven"])
    return found


def rows_of(script: str, reader) -> tuple[list[dict], np.ndarray]:
    """-> a row for each prompt, and six images of each of SHOWN."""
    (run, draw), rows, shown = drawer(script), [], []
    chosen, config = run.saved["attributes"], data_args()
    for prompt in PROMPTS:
        pixels, _ = draw_all(run, draw, [prompt] * N, heldout_scale(run.config), prompt)
        digits = Counter(reader.see(pixels)[1].tolist()).most_common(2)
        states = attributes.states(config, attributes.measured(config, pixels), chosen)
        row = {"model": script, "prompt": prompt, "n": N}
        for place, (digit, count) in zip(("first", "second"), digits):
            row |= {f"{place}_digit": digit, f"{place}_share": count / N}
        for column, words in zip(states.T, chosen.values()):
            for word, state in zip(words, (-1, 1)):
                row[word] = (column == state).mean()
        rows.append(row)
        if prompt in SHOWN:
            shown.append(pixels[:6])
    return rows, np.concatenate(shown)


def words_of_a4(reader) -> list[dict]:
    """A row for each combination of words, of 1,000 images each, in trained phrasings."""
    run, draw = drawer("a4_full")
    chosen, config = run.saved["attributes"], data_args()
    arrays, scale = prompts_of(run, "attributes", 9 * 1000), heldout_scale(run.config)
    prompts = arrays["prompts"].tolist()
    pixels, _ = draw_all(run, draw, prompts, scale, "words", numbers=arrays["noise"])
    states = attributes.states(config, attributes.measured(config, pixels), chosen)
    right = reader.see(pixels)[1] == arrays["labels"]
    words, rows = [tuple(pair) for pair in chosen.values()], []
    for combination, row in metrics.obedience(arrays["asked"], states, right).items():
        asked = ", ".join(words_of(words, combination)) or "nothing"
        del row["single"]
        rows.append({"model": "a4_full", "scale": scale, "asked": asked, **row})
    return rows


def cosines(encoder) -> np.ndarray:
    """Of COMPARED, as the models read them: without the mean of all training sentences."""
    words = [(x.low, x.high) for x in attributes.WRITTEN]
    none = torch.zeros(1, 2, dtype=torch.int8)
    captions = Captions(data_args(), torch.zeros(1, dtype=torch.long), none, words)
    mean = encode_once(encoder, captions.sentences[::7], {}).mean(0)
    vectors = encode_once(encoder, COMPARED, {}) - mean
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return (vectors @ vectors.T).numpy()


def save_cosines(path: Path, matrices: dict[str, np.ndarray]) -> None:
    figure = Figure(figsize=(6.2 * len(matrices), 6), layout="constrained")
    for axes, (name, matrix) in zip(figure.subplots(1, len(matrices), squeeze=False)[0],
                                    matrices.items()):  # fmt: skip
        axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(matrix):
            style = {"ha": "center", "va": "center", "fontsize": 6}
            axes.text(column, row, f"{value:.1f}", color="wk"[int(abs(value) < 0.6)], **style)
        places = np.arange(len(COMPARED))
        axes.set_xticks(places, COMPARED, rotation=90, fontsize=8)
        axes.set_yticks(places, COMPARED, fontsize=8)
        axes.set_title(name)
    save_file(path, lambda file: figure.savefig(file, format="png", dpi=110))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clip", help="a third encoder for the cosines: ViT-B/32, or a file")
    clip, cpu, config = parser.parse_args().clip, torch.device("cpu"), data_args()
    matrices = {"bag of words (a1)": cosines(a1_cond.BagOfWords())}
    for name in dict.fromkeys(("tiny", clip or "tiny")):
        matrices[f"CLIP: {name}"] = cosines(encoders.load_clip(name, config, cpu))
    save_cosines(ROOT / "assets" / "cosines.png", matrices)
    reader, rows, columns = judge.load_judge(config, cpu), [], []
    for script in MODELS:
        found, shown = rows_of(script, reader)
        rows += found
        columns.append(shown.reshape(len(SHOWN), 6, 28, 28))
        for row in found:
            words = ", ".join(f"{word} {row[word]:.0%}" for word in list(row)[-4:])
            print(f"{script:8s} {row['prompt']!r:34s} {row['first_digit']} "
                  f"{row['first_share']:.0%}  {words}")  # fmt: skip
    save_table(ROOT / "docs" / "results" / "sentences.csv", rows, "%.4g")
    beside = [columns[MODELS.index(name)][:, :4] for name in ("a1_cond", "a2_clip", "a4_full")]
    grid = np.concatenate(beside, 1)
    titles = [name if i == 1 else "" for name in ("a1", "a2", "a4") for i in range(4)]
    path = ROOT / "assets" / "sentences.png"
    save_grid(path, grid.reshape(-1, 28, 28), 12, "", titles, SHOWN, inches=0.35)
    save_table(ROOT / "docs" / "results" / "words.csv", words_of_a4(reader), "%.4g")


if __name__ == "__main__":
    main()
