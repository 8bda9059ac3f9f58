"""How many drawings an independent classifier recognises. No test: run it after a training run.

python a4_full.py --dataset quickdraw --classes cat,rainbow,train --per-class 1000
python tests/bench_quickdraw.py results/quickdraw/a4_full [folder with cat.npy and so on]

The classifier, a small CNN, learns from the real drawings alone; its accuracy on real ones that it
never saw stands beside.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kit.images import to_images  # noqa: E402
from kit.quickdraw import read_bitmaps  # noqa: E402
from kit.run import read_config  # noqa: E402
from kit.samples import load_samples  # noqa: E402
from kit.tiny_clip import jitter  # noqa: E402

STEPS = 600


def classifier(classes: int) -> nn.Module:
    widths, layers = (1, 32, 64, 128), []
    for c_in, c_out in zip(widths, widths[1:]):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
        layers += [
            nn.Conv2d(c_out, c_out, 3, padding=1),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 9, classes))


def train(images: torch.Tensor, labels: torch.Tensor, classes: int) -> nn.Module:
    torch.manual_seed(1)
    net = classifier(classes).train()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        i = torch.randint(len(images), (64,))
        x = jitter(torch.where(torch.rand(64, 1, 1, 1) < 0.5, images[i], images[i].flip(3)))
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels[i], label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def right(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.cat([net(part) for part in images.split(500)]).argmax(1) == labels


def main(argv: list[str]) -> None:
    run, bitmaps = Path(argv[0]), Path([*argv, "data/quickdraw"][1])
    config = read_config(run)
    names, n = config["classes"], config["per_class"]
    real = [to_images(torch.from_numpy(read_bitmaps(bitmaps / f"{name}.npy", n))) for name in names]
    images, labels = (
        torch.cat(real),
        torch.arange(len(real)).repeat_interleave(torch.tensor([*map(len, real)])),
    )
    unseen = torch.arange(len(images)) % 5 == 4
    net = train(images[~unseen], labels[~unseen], len(names))
    real_right = right(net, images[unseen], labels[unseen]).float().mean()
    print(f"real drawings the classifier never saw: {real_right:.1%} of {unseen.sum()} recognised")
    for path in sorted(run.glob("images/samples_*.npz")):
        pixels, asked, _ = load_samples(path)
        asked = torch.from_numpy(asked)
        got = right(net, to_images(torch.from_numpy(pixels)), asked).float()
        each = ", ".join(f"{name} {got[asked == y].mean():.1%}" for y, name in enumerate(names))
        print(f"{path.name}: {got.mean():.1%} of {len(got)} recognised ({each})")


if __name__ == "__main__":
    main(sys.argv[1:])
