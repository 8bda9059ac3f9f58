"""Does the full model obey vectors of OpenAI's geometry? No test: it trains for minutes.

python tests/bench_stand_in.py --seed 0

ViT-B/32's text tower at random weights stands in for OpenAI's: the same narrow cone, but without
any knowledge of words, so that held-out phrasings can only be guessed. It prints the cone, then
trains a4_full.py on it in results/stand_in and has its images judged. Flags go to a4_full.py.
"""

import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from conftest import CPU, ROOT, STAND_IN, save_openai_clip

import a4_full
import common
from kit.words import TRAIN_TEMPLATES, phrasings


def cosines(texts: torch.Tensor) -> str:
    """texts (classes, phrasings, dim)."""
    texts = F.normalize(texts, dim=2)

    def mean(groups):
        n = groups.shape[1]
        return ((groups @ groups.mT).sum((1, 2)) - n).mean().item() / (n * (n - 1))

    classes, every = mean(texts.transpose(0, 1)), mean(texts.flatten(0, 1)[None])
    words = f"two classes in one phrasing {classes:.2f}, two phrasings of one class"
    return f"{words} {mean(texts):.2f}, any two {every:.2f}"


def main() -> None:
    folder = Path("data/stand_in")
    folder.mkdir(parents=True, exist_ok=True)
    save_openai_clip(folder, STAND_IN)
    stand_in = str(folder / "jit.pt")
    for name in ("tiny", stand_in):
        config = a4_full.Config(clip=name)
        clip, groups = common.load_clip(config, CPU), phrasings(config, TRAIN_TEMPLATES)
        texts = torch.stack([clip.encode_text(group) for group in groups])
        print(f"{name}: cosine of {cosines(texts)}")
        print(f"{name}, centred: {cosines(texts - texts.mean((0, 1)))}", flush=True)
    for script, *flags in (["a4_full", "--clip", stand_in, *sys.argv[1:]],
                           ["evaluate", "--clip", "tiny"]):  # fmt: skip
        line = [sys.executable, str(ROOT / f"{script}.py"), "--out", "results/stand_in", *flags]
        subprocess.run(line, check=True)


if __name__ == "__main__":
    main()
