"""Two controls for docs/5-results.md: is it CLIP, or its training among random words?

Static is a text encoder that read the world and none of our sentences: the vectors of WordLlama
(pip install wordllama safetensors tokenizers), averaged over a text's tokens. noisy() puts random
words around sentences, as tiny CLIP's training does. tests/variants.py puts them into scripts.
"""

import importlib.util
import random
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

from kit import clip

COPIES = 6  # of each sentence, among other random words


class Static:
    """As kit.clip.Clip, without images."""

    name, dim = "WordLlama", 256

    def __init__(self):
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        (folder,) = importlib.util.find_spec("wordllama").submodule_search_locations
        weights = Path(folder, "weights", "l2_supercat_256.safetensors")
        tokens = Path(folder, "tokenizers", "l2_supercat_tokenizer_config.json")
        self.vectors = load_file(weights)["embedding.weight"].float()  # (32000, 256)
        self.tokenizer = Tokenizer.from_file(str(tokens))
        self.crc32 = zlib.crc32(weights.read_bytes())

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """-> (n, 256), rows of length 1."""
        ids = [self.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return F.normalize(torch.stack([self.vectors[i].mean(0) for i in ids]), dim=1)


def noisy(sentences: list[str]) -> list[str]:
    """sentences, and COPIES of all of them with up to eight random words before and after each."""
    dice, known = random.Random(0), {word for text in sentences for word in text.lower().split()}
    words = [x[:-4] for x in clip.tokenizer().encoder if x.endswith("</w>")]
    words = [x for x in words if x.isalpha() and len(x) > 2 and x not in known]

    def some() -> list[str]:
        return dice.sample(words, dice.randint(0, 8))

    return sentences + [" ".join([*some(), x, *some()]) for _ in range(COPIES) for x in sentences]


def shift(n: int, sentences: int) -> torch.Tensor:
    """-> (n,): what to add to the index of a sentence: 0 for a fourth of all, else of a copy."""
    return (torch.randint(COPIES + 2, (n,)) - 1).clamp(min=0) * sentences
