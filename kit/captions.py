"""The captions of training images: all sentences, and which of them fit an image."""

from itertools import product

import torch

from kit import attributes
from kit.words import TRAIN_TEMPLATES, phrasings

MOST = 6000  # maximum number of sentences; with many classes, each has fewer templates
HELD_OUT = 1, -1  # first attribute high, second low: no training caption has both
HELD_OUT_TURNS = 5  # how often such an image is drawn; 0 leaves them out of training


def combinations(attributes: int) -> list[tuple[int, ...]]:
    """What a prompt can ask for: per attribute -1 low, 1 high, 0 nothing. HELD_OUT is last."""
    every = product((0, -1, 1), repeat=attributes)
    return sorted(every, key=lambda asked: (sum(map(abs, asked)), asked == HELD_OUT))


def words_of(words: list[tuple[str, str]], combination: tuple[int, ...]) -> tuple[str, ...]:
    """-> the words that ask for combination. words: the low and high word of each attribute."""
    return tuple(pair[x > 0] for pair, x in zip(words, combination) if x)


class Captions:
    """sentences: every class in every training template, alone and with attribute words.

    words: the low and the high word of each attribute; chosen: the threshold of each word
    states: the attributes of each image, int8 (N, attributes): -1 low, 1 high, 0 in between
    """

    def __init__(self, config, pixels: torch.Tensor, labels: torch.Tensor, chosen: dict | None):
        """pixels uint8 (N, 28, 28), labels int64 (N,). chosen None: from the pixels."""
        values = attributes.measured(config, pixels.cpu().numpy())
        self.chosen = attributes.thresholds(config, values) if chosen is None else chosen
        states = attributes.states(config, values, self.chosen)
        self.labels, self.states = labels, torch.from_numpy(states).to(labels.device)
        self.words = [tuple(pair) for pair in self.chosen.values()]
        # Each word that fits an image triples the chance to draw it, and is mentioned with
        # probability 2/3. So captions without words show all images equally often, and a word said
        # alone goes with each state of the other attribute as often as in the data.
        turns = 3 ** (self.states != 0).sum(1)
        self.held_out = (self.states == self.states.new_tensor(HELD_OUT[: len(self.words)])).all(1)
        self.held_out &= len(self.words) == len(HELD_OUT)
        turns[self.held_out] = HELD_OUT_TURNS
        images = torch.arange(len(labels), dtype=torch.int32, device=labels.device)
        self.turns = images.repeat_interleave(turns)
        self.sentences, table = all_captions(config, self.words)
        self.table = table.to(labels.device)

    def pick(self, n: int) -> torch.Tensor:
        """-> the indices (n,) of random images, weighted as in turns."""
        return self.turns[torch.randint(len(self.turns), (n,), device=self.turns.device)].long()

    def mention(self, i: torch.Tensor) -> torch.Tensor:
        """Images i (B,) -> what to mention (B, attributes): -1 low, 1 high, 0 not mentioned."""
        states = self.states[i]
        said = torch.where(torch.rand(states.shape, device=states.device) < 2 / 3, states, 0)
        turn = torch.randint(5, (len(i), 1), device=i.device)
        one = torch.cat([turn < 2, turn > 2], 1)[:, : len(self.words)]
        return torch.where(self.held_out[i, None], states * one, said)

    def find(self, i: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """Images i (B,), attributes to mention -> indices of random sentences that fit (B,)."""
        phrasing = torch.randint(self.table.shape[-1], i.shape, device=i.device)
        return self.table[(self.labels[i], *(said.long() + 1).unbind(1), phrasing)]


def all_captions(config, words: list[tuple[str, str]]) -> tuple[list[str], torch.Tensor]:
    """-> sentences, and their indices by class, attributes and phrasing (classes, 3, ..., n)."""
    said = [combination for combination in combinations(len(words)) if combination != HELD_OUT]
    sentences, groups = [], phrasings(config, TRAIN_TEMPLATES)
    n = min(max(1, MOST // (len(config.classes) * len(said))), len(groups[0]))
    table = torch.zeros((len(groups), *[3] * len(words), n), dtype=torch.long)
    for combination in said:
        texts = phrasings(config, TRAIN_TEMPLATES, words_of(words, combination))
        for label, group in enumerate(texts):
            first = len(sentences)  # rotate through templates if n < all
            sentences += [group[(first // n + i * len(group) // n) % len(group)] for i in range(n)]
            table[(label, *(x + 1 for x in combination))] = torch.arange(first, first + n)
    return sentences, table
