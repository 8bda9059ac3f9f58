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
from conftest import CPU, ROOT, STAND_IN, data_args, save_openai_clip

from kit.datasets import TRAIN_TEMPLATES, phrasings
from kit.encoders import load_clip


def cosines(texts: torch.Tensor) -> str:
    """texts (classes, phrasings, dim)."""
    texts = F.normalize(texts, dim=2)
    classes, same_class = texts.transpose(0, 1), texts

    def mean(groups):
        n = groups.shape[1]
        return ((groups @ groups.mT).sum((1, 2)) - n).mean().item() / (n * (n - 1))

    every = mean(texts.flatten(0, 1)[None])
    words = f"two classes in one phrasing {mean(classes):.2f}, two phrasings of one class"
    return f"{words} {mean(same_class):.2f}, any two {every:.2f}"


def main() -> None:
    folder = Path("data/stand_in")
    folder.mkdir(parents=True, exist_ok=True)
    save_openai_clip(folder, STAND_IN)
    stand_in = str(folder / "jit.pt")
    for name in ("tiny", stand_in):
        clip = load_clip(name, data_args(), CPU)
        groups = phrasings(data_args(), TRAIN_TEMPLATES)
        texts = torch.stack([clip.encode_text(group) for group in groups])
        print(f"{name}: cosine of {cosines(texts)}")
        print(f"{name}, centred: {cosines(texts - texts.mean((0, 1)))}", flush=True)
    out = ["--out", "results/stand_in"]
    script = [str(ROOT / "a4_full.py"), *out, "--clip", stand_in, *sys.argv[1:]]
    subprocess.run([sys.executable, *script], check=True)
    judge = [str(ROOT / "evaluate.py"), *out, "--clip", "tiny", "--extractor", "judge"]
    subprocess.run([sys.executable, *judge], check=True)


if __name__ == "__main__":
    main()
