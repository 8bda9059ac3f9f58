"""The judge: a small CNN that reads the class of an image, and whose features FID is made of.

Idea      Who measures must have no part in what is measured. CLIP tells the models what to draw;
          this network has met only real images and their classes, and no model has met it.
Model     Convolutions down to 7 x 7, a layer of 64 features, one weight for each class.
Data      The training split, each image turned, sheared and shifted a little. Of MNIST the digits
          that are not embedded: what models learn from offline, their judge never saw.
Command   python -m kit.judge --dataset mnist --train-steps 6000 --out my_judge.pt
Result    reads 99.58 % of MNIST's 10,000 test digits right (seed 0; 6 minutes on a core)
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kit.base import (
    ROOT,
    Progress,
    UserError,
    cli,
    crc32,
    load_tensors,
    pick_device,
    reading,
    save_file,
    say,
    tell,
)
from kit.datasets import file_name, settle_classes
from kit.flags import DataConfig, flag
from kit.images import jitter, load_dataset, not_embedded, to_images
from kit.locks import Halfway, check_own, make_once

SHIPPED = ROOT / "assets" / "judge_mnist.pt"  # not there in a notebook
STEPS, BATCH, LR = 1200, 128, 2e-3


class Judge(nn.Sequential):
    """images (B, 1, 28, 28) in [-1, 1] -> a score for each class (B, classes)."""

    def __init__(self, classes: int):
        sizes, layers = ((1, 32, 5, 2), (32, 64, 3, 1), (64, 64, 3, 1), (64, 64, 3, 1)), []
        for c_in, c_out, size, stride in sizes:
            layers += [nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False)]
            layers += [nn.BatchNorm2d(c_out), nn.ReLU()]  # (B, c_out, 14, 14)
        layers.insert(6, nn.MaxPool2d(2))  # from there on (B, 64, 7, 7)
        layers += [nn.Flatten(), nn.Linear(64 * 49, 64), nn.BatchNorm1d(64), nn.ReLU()]
        super().__init__(nn.Sequential(*layers), nn.Linear(64, classes))

    @torch.no_grad()
    def see(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """pixels uint8 (n, 28, 28) -> features (n, 64), the class that is read (n,)."""
        (body, last), features, read = self, [], []
        for part in torch.from_numpy(pixels).split(500):
            x = body(to_images(part.to(last.weight.device)))  # (500, 64)
            features.append(x.cpu())
            read.append(last(x).argmax(1).cpu())
        return torch.cat(features).numpy(), torch.cat(read).numpy()


def train(pixels, labels, classes: int, steps: int, seed: int, device, file=None) -> Judge:
    """pixels uint8 (N, 28, 28), labels (N,) -> a judge in evaluation mode.

    file: what it is for; then a bar tells how far it is, and a kill only delays it.
    """
    torch.manual_seed(seed)
    judge = Judge(classes).to(device).train()
    optimizer = torch.optim.AdamW(judge.parameters(), LR, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    modules = {"model": judge, "optimizer": optimizer, "schedule": schedule}
    key = f"{classes} {steps} {seed} {crc32(pixels.numpy()):08x}"
    training = Halfway(file, key, **modules)
    for _ in Progress(training.steps(steps), "judge", unit="step", total=steps, disable=not file):
        i = torch.randint(len(pixels), (BATCH,))
        images, y = jitter(to_images(pixels[i])).to(device), labels[i].to(device)
        loss = F.cross_entropy(judge(images), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    training.done()
    return judge.eval()


def judge_path(config) -> Path:
    shipped = config.dataset == "mnist" and SHIPPED.parent.exists()
    return SHIPPED if shipped else config.data_dir / "judge" / file_name(config)


def load_judge(config, device: torch.device, file: Path | None = None) -> Judge:
    """The judge of just these classes, with crc32, its file's; trained now if it is not there."""
    file = file or judge_path(config)
    if not file.is_file():
        made = make_once(file, "judge", lambda: make(file, config, device, STEPS, 0))
        if made:  # not by another process
            say(f"judge: {made}")
    with reading(file, "delete it (the one in assets/: get it from the repository)"):
        state = load_tensors(file)
        if state.pop("learned") != [config.dataset, config.classes]:
            raise UserError(f"{file} learned other classes than {', '.join(config.classes[:9])}")
        judge = Judge(len(config.classes))
        judge.load_state_dict(state)
    judge.crc32 = zlib.crc32(file.read_bytes())
    return judge.to(device).eval()


def make(file: Path, config, device: torch.device, steps: int, seed: int) -> str:
    """Train a judge and write it to a file; -> how well it reads what it never saw."""
    say(f"judge: training one for {config.dataset}, once; it is kept at {file}")
    pixels, labels = not_embedded(config)
    judge = train(pixels, labels, len(config.classes), steps, seed, device, file)
    state = {"learned": [config.dataset, config.classes], **judge.half().state_dict()}
    save_file(file, lambda content: torch.save(state, content))
    held_out, asked, _ = load_dataset(config, "test")
    share = (load_judge(config, device, file).see(held_out.numpy())[1] == asked.numpy()).mean()
    learned = f"learned from {len(pixels):,} images"
    return f"{file}: {learned}, reads {share:.2%} of {len(asked):,} held-out ones right"


@dataclass
class Config(DataConfig):
    out: Path | None = flag(None, "the file to write (the one that evaluate.py takes)")
    train_steps: int = flag(STEPS, "optimiser steps", 1, 10**7)
    seed: int = flag(0, "of the training", 0, 2**31)
    device: str = flag("auto", "cpu, cuda, ...")


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    settle_classes(config)
    file = config.out or judge_path(config)
    check_own(file, config.out is not None, "a judge", lambda: load_tensors(file)["learned"])
    device, steps = pick_device(config.device), config.train_steps
    tell(make_once(file, "judge", lambda: make(file, config, device, steps, config.seed), True))


if __name__ == "__main__":
    cli(main)
