"""The sentences that training images are given: which there are, and which fit an image."""

from itertools import product

import torch

from kit.datasets import TRAIN_TEMPLATES, phrasings

MOST = 6000  # distinct captions, at most; with more classes than fit in, one of each kind
UNSAID = 1, -1  # of two attributes, high and low: what training never says together


def combinations(attributes: int) -> list[tuple[int, ...]]:
    """What a prompt may ask of so many attributes: -1, low, 1, high, 0, nothing of it.

    From nothing at all to everything; the pair that is never said in training comes last.
    """
    every = product((0, -1, 1), repeat=attributes)
    return sorted(every, key=lambda asked: (sum(map(abs, asked)), asked == UNSAID))


def words_of(words: list[tuple[str, str]], combination: tuple[int, ...]) -> tuple[str, ...]:
    """words: of each attribute the low and the high one -> those that a combination stands for."""
    return tuple(pair[x > 0] for pair, x in zip(words, combination) if x)


class Captions:
    """Every class in every phrasing, alone and with the words of attributes.

    sentences   all that training may say
    words       of each attribute the low and the high word
    """

    def __init__(self, config, labels: torch.Tensor, states: torch.Tensor, words):
        """labels int64 (N,) and states int8 (N, attributes; -1 low, 1 high) of the images."""
        self.labels, self.states, self.words = labels, states, [tuple(pair) for pair in words]
        # An image is drawn three times as often for each word that fits it, and two of three times
        # the word is said. So captions without words, the third, still stand for all images.
        turns = 3 ** (states != 0).sum(1)
        images = torch.arange(len(labels), dtype=torch.int32, device=labels.device)
        self.turns = images.repeat_interleave(turns)  # small numbers, since there may be millions
        every = combinations(len(self.words))
        said = [combination for combination in every if combination != UNSAID]
        room = max(1, MOST // (len(config.classes) * len(said)))
        self.sentences, groups = [], phrasings(config, TRAIN_TEMPLATES)
        n = min(room, len(groups[0]))
        shape = (len(groups), *[3] * len(self.words), n)
        table = torch.zeros(shape, dtype=torch.long)  # (classes, 3 of each attribute, phrasings)
        for combination in said:
            texts = phrasings(config, TRAIN_TEMPLATES, words_of(self.words, combination))
            for label, group in enumerate(texts):  # of too many phrasings some, in turn others
                first = len(self.sentences)
                chosen = [(first // n + i * len(group) // n) % len(group) for i in range(n)]
                self.sentences += [group[i] for i in chosen]
                cell = label, *(x + 1 for x in combination)
                table[cell] = torch.arange(first, first + n)
        self.table = table.to(labels.device)

    def draw(self, n: int) -> torch.Tensor:
        """-> n images by chance (n,)."""
        return self.turns[torch.randint(len(self.turns), (n,), device=self.turns.device)].long()

    def say(self, i: torch.Tensor) -> torch.Tensor:
        """Images i (B,) -> what is said of their attributes (B, attributes): -1, low, 1, high.

        0: nothing. A word that fits is said two of three times.
        """
        states = self.states[i]
        said = torch.where(torch.rand(states.shape, device=states.device) < 2 / 3, states, 0)
        if len(self.words) < 2:
            return said
        never = ((said[:, 0] == UNSAID[0]) & (said[:, 1] == UNSAID[1]))[:, None]
        first = torch.rand(len(said), 1, device=said.device) < 0.5
        return torch.where(never & torch.cat([first, ~first], 1), 0, said)

    def find(self, i: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """Images i (B,), what is said of them -> a sentence each (B,), in any phrasing."""
        phrasing = torch.randint(self.table.shape[-1], i.shape, device=i.device)
        cell = (self.labels[i], *(said.long() + 1).unbind(1), phrasing)
        return self.table[cell]
