"""The judge: a small CNN that reads the class of an image; FID compares its features.

It has no part in what it measures: it is trained on real images alone, and of MNIST neither on the
embedded digits, on which models are trained, nor on those for choices: see real_images(). It reads
99.46 % of the embedded test digits right after
    python -m kit.judge --dataset mnist --train-steps 6000 --out my_judge.pt
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kit import files
from kit.config import DataConfig
from kit.data import EMBEDDED, embedded_mnist, load_dataset, to_images
from kit.files import ROOT, UserError, load_tensors, progress, reading, save_file, say
from kit.tiny_clip import jitter

ASSET = ROOT / "assets" / "judge_mnist.pt"  # missing in a notebook
STEPS, BATCH, LR = 1200, 128, 2e-3
TAUGHT = 500  # fewer images teach no classifier


class Judge(nn.Sequential):
    """images (B, 1, 28, 28) in [-1, 1] -> a score for each class (B, classes)."""

    def __init__(self, classes: int):
        sizes, layers = ((1, 32, 5, 2), (32, 64, 3, 1), (64, 64, 3, 1), (64, 64, 3, 1)), []
        for c_in, c_out, size, stride in sizes:
            convolution = nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(c_out), nn.ReLU()]  # (B, c_out, 14, 14)
        layers.insert(6, nn.MaxPool2d(2))  # from there on (B, 64, 7, 7)
        layers += [nn.Flatten(), nn.Linear(64 * 49, 64), nn.BatchNorm1d(64), nn.ReLU()]
        super().__init__(nn.Sequential(*layers), nn.Linear(64, classes))

    @torch.no_grad()
    def see(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """pixels uint8 (n, 28, 28) -> features (n, 64), the class that is read (n,)."""
        (body, last), parts = self, torch.from_numpy(pixels).split(500)
        features = torch.cat([body(to_images(part.to(last.weight.device))) for part in parts])
        return features.cpu().numpy(), last(features).argmax(1).cpu().numpy()


def train(pixels, labels, classes: int, device, steps: int = STEPS, seed: int = 0) -> Judge:
    """pixels uint8 (N, 28, 28), labels (N,) -> a trained judge, in evaluation mode."""
    torch.manual_seed(seed)
    judge = Judge(classes).to(device).train()
    optimizer = torch.optim.AdamW(judge.parameters(), LR, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in progress(range(steps), "training a classifier", unit="step", leave=False):
        i = torch.randint(len(pixels), (BATCH,))
        scores = judge(jitter(to_images(pixels[i])).to(device))
        loss = nn.functional.cross_entropy(scores, labels[i].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def taught(pixels, labels, test_pixels, test_labels, classes: int, device) -> float:
    """Test accuracy of a judge trained on these images; nan for too few. Ravuri & Vinyals 2019."""
    if len(pixels) < TAUGHT or labels.min() < 0:
        return np.nan
    steps = max(100, len(pixels) // 20)
    judge = train(torch.from_numpy(pixels), torch.from_numpy(labels), classes, device, steps)
    return float((judge.see(test_pixels)[1] == test_labels).mean())


def judge_path(config) -> Path:
    if config.name == "mnist" and ASSET.exists():
        return ASSET
    key = json.dumps([config.classes, config.emnist_split, config.per_class])
    return config.data_dir / "judge" / f"{config.name}_{zlib.crc32(key.encode()):08x}.pt"


def load_judge(config, device: torch.device) -> Judge:
    """The judge for the classes of config, trained now if there is none; crc32: of its file."""
    path = judge_path(config)
    if not path.exists():
        make(config, path, device)
    with reading(path, "delete it (the one in assets/: get it from the repository)"):
        state = load_tensors(path)
        if state.pop("learned") != [config.name, [*config.classes]]:
            raise UserError(f"{path} was trained for other classes than {config.classes[:9]}")
        judge = Judge(len(config.classes))
        judge.load_state_dict(state)
    judge.crc32 = zlib.crc32(path.read_bytes())
    return judge.to(device).eval()


def make(config, path: Path, device, steps: int = STEPS, seed: int = 0) -> None:
    """Train a judge for the classes of config and write it to path."""
    say(f"judge: training one for {config.name}, once; it is kept in {path}")
    judge = train(*real_images(config), len(config.classes), device, steps, seed)
    state = {**judge.half().state_dict(), "learned": [config.name, [*config.classes]]}
    save_file(path, lambda file: torch.save(state, file))


def real_images(config, choices: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The training split, of MNIST without the embedded digits -> pixels, labels.

    Every eighth of MNIST's other digits is kept to choose hyperparameters by, and for nothing else.
    """
    pixels, labels, source = load_dataset(config)
    if source == "embedded":
        raise UserError("the judge is trained on MNIST's own files, which are not here")
    if config.name != "mnist" or not EMBEDDED["train"].exists():
        return pixels, labels
    known = {*map(bytes, embedded_mnist("train")[0].numpy())}
    others = [i for i, image in enumerate(pixels.numpy()) if bytes(image) not in known]
    chosen = others[::8] if choices else [i for k, i in enumerate(others) if k % 8]
    return pixels[chosen], labels[chosen]


@dataclass
class Config(DataConfig):
    out: Path = Path("judge.pt")  # the file to write
    train_steps: int = STEPS  # optimiser steps


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    if config.out.exists():
        raise UserError(f"{config.out} exists; choose another file with --out")
    make(config, config.out, files.pick_device("auto"), config.train_steps)


if __name__ == "__main__":
    main()
