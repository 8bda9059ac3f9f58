"""Muon, an optimiser whose updates change all directions of a weight equally."""

import torch


class Muon(torch.optim.Optimizer):
    """Muon for the weights of convolutions, AdamW for all others (Jordan et al. 2024).

    A weight (out, in, 3, 3) is seen as a matrix (out, 9 in), and its momentum is replaced by the
    nearest orthogonal matrix: otherwise only a few directions with large gradients learn. Each
    group has its "lr" and, for schedules, its "peak". torch.optim.Muon takes matrices only.
    """

    def __init__(self, parameters, lr: float, muon_lr: float = 0.02, momentum: float = 0.95):
        parameters = list(parameters)
        muon = {"params": [weight for weight in parameters if weight.ndim == 4], "peak": muon_lr}
        muon |= {"lr": muon_lr, "momentum": momentum, "decay": 0.01}
        others = {"params": [weight for weight in parameters if weight.ndim != 4], "peak": lr}
        self.adamw = torch.optim.AdamW([others], lr, betas=(0.9, 0.99), fused=True)
        super().__init__([muon, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self) -> None:
        muon, others = self.param_groups
        self.adamw.param_groups, self.adamw.state = [others], self.state  # both may be reloaded
        self.adamw.step()
        weights = [weight for weight in muon["params"] if weight.grad is not None]  # not frozen
        keep = muon["momentum"]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["mean"] = torch.zeros_like(weight)  # of the gradients
            mean = self.state[weight]["mean"].lerp_(weight.grad, 1 - keep)
            update = orthogonal(weight.grad.lerp(mean, keep).flatten(1))  # Nesterov's, (out, 9 in)
            rate = muon["lr"] * max(1, len(update) / update.shape[1]) ** 0.5
            weight.mul_(1 - muon["lr"] * muon["decay"])
            weight.add_(update.view_as(weight), alpha=-rate)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """(m, n) -> about the nearest orthogonal matrix, by five Newton-Schulz steps."""
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    gram = wide @ wide.T  # (m, m)
    for _ in range(5):  # multiply by a polynomial of the Gram matrix
        step = torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        step.diagonal().add_(3.4445)
        wide, gram = step @ wide, step @ gram @ step
    return wide if wide.shape == matrix.shape else wide.T  # with singular values from 0.7 to 1.2
