"""The captions of training images: which sentences there are, and which of them fit an image."""

from itertools import product

import torch

from kit import attributes
from kit.words import TRAIN_TEMPLATES, phrasings

MOST = 6000  # captions in all; with many classes each gets fewer templates
HELD_OUT = 1, -1  # of two attributes high and low: never together in a caption


def combinations(attributes: int) -> list[tuple[int, ...]]:
    """What prompts may ask of attributes: -1 low, 1 high, 0 nothing. The pair comes last."""
    every = product((0, -1, 1), repeat=attributes)
    return sorted(every, key=lambda asked: (sum(map(abs, asked)), asked == HELD_OUT))


def words_of(words: list[tuple[str, str]], combination: tuple[int, ...]) -> tuple[str, ...]:
    """words: the low and the high word of each attribute -> those that combination asks for."""
    return tuple(pair[x > 0] for pair, x in zip(words, combination) if x)


class Captions:
    """sentences: every class in every training template, alone and with attribute words.

    words: the low and the high word of each attribute; chosen: where each begins.
    states: of each image int8 (N, attributes), -1 low, 1 high, 0 between
    """

    def __init__(self, config, pixels: torch.Tensor, labels: torch.Tensor, chosen: dict | None):
        """pixels uint8 (N, 28, 28), labels int64 (N,). chosen None: found in the pixels."""
        values = attributes.measured(config, pixels.cpu().numpy())
        self.chosen = attributes.thresholds(config, values) if chosen is None else chosen
        states = attributes.states(config, values, self.chosen)
        self.labels, self.states = labels, torch.from_numpy(states).to(labels.device)
        self.words = [tuple(pair) for pair in self.chosen.values()]
        # An image is drawn three times as often for each word that fits it, and the word is said
        # two of three times. So captions without words still stand for all images.
        turns = 3 ** (self.states != 0).sum(1)
        images = torch.arange(len(labels), dtype=torch.int32, device=labels.device)
        self.turns = images.repeat_interleave(turns)
        self.sentences, self.table = all_captions(config, self.words)
        self.table = self.table.to(labels.device)

    def draw(self, n: int) -> torch.Tensor:
        """-> the indices of n random images (n,)."""
        return self.turns[torch.randint(len(self.turns), (n,), device=self.turns.device)].long()

    def say(self, i: torch.Tensor) -> torch.Tensor:
        """Images i (B,) -> what captions say of them (B, attributes): -1 low, 1 high, 0 nothing."""
        states = self.states[i]
        said = torch.where(torch.rand(states.shape, device=states.device) < 2 / 3, states, 0)
        if len(self.words) < 2:
            return said
        never = ((said[:, 0] == HELD_OUT[0]) & (said[:, 1] == HELD_OUT[1]))[:, None]
        first = torch.rand(len(said), 1, device=said.device) < 0.5
        return torch.where(never & torch.cat([first, ~first], 1), 0, said)

    def find(self, i: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """Images i (B,) and what is said of them -> a random fitting sentence each (B,)."""
        phrasing = torch.randint(self.table.shape[-1], i.shape, device=i.device)
        cell = (self.labels[i], *(said.long() + 1).unbind(1), phrasing)
        return self.table[cell]


def all_captions(config, words: list[tuple[str, str]]) -> tuple[list[str], torch.Tensor]:
    """-> sentences, and their indices by class, attributes, phrasing (classes, 3, ..., n)."""
    said = [combination for combination in combinations(len(words)) if combination != HELD_OUT]
    sentences, groups = [], phrasings(config, TRAIN_TEMPLATES)
    n = min(max(1, MOST // (len(config.classes) * len(said))), len(groups[0]))
    table = torch.zeros((len(groups), *[3] * len(words), n), dtype=torch.long)
    for combination in said:
        texts = phrasings(config, TRAIN_TEMPLATES, words_of(words, combination))
        for label, group in enumerate(texts):  # where there is no room for all, others in turn
            first = len(sentences)
            chosen = [(first // n + i * len(group) // n) % len(group) for i in range(n)]
            sentences += [group[i] for i in chosen]
            table[(label, *(x + 1 for x in combination))] = torch.arange(first, first + n)
    return sentences, table
