"""Muon, an optimiser: momentum that turns all directions of a weight equally far."""

import torch


class Muon(torch.optim.Optimizer):
    """Muon for the weights of convolutions, AdamW for all others (Jordan et al. 2024).

    A weight (out, in, 3, 3) is read as a matrix (out, 9 in). Its momentum is replaced by the
    nearest orthogonal matrix: without that a few directions with large gradients learn, and the
    others wait. Each group of param_groups has its "lr" and, for schedules, its "peak".

    torch.optim.Muon takes matrices alone, and works in bfloat16, which costs more than the whole
    rest of a step on a processor that has none.
    """

    def __init__(self, parameters, lr: float, muon_lr: float = 0.02, momentum: float = 0.95):
        parameters = list(parameters)
        convolutions = [weight for weight in parameters if weight.ndim == 4]
        others = [weight for weight in parameters if weight.ndim != 4]
        self.adamw = torch.optim.AdamW(others, lr, betas=(0.9, 0.99), fused=True)
        group = {"params": convolutions, "lr": muon_lr, "momentum": momentum, "decay": 0.01}
        super().__init__([group, *self.adamw.param_groups], {})
        for group in self.param_groups:
            group["peak"] = group["lr"]

    @torch.no_grad()
    def step(self) -> None:
        muon, others = self.param_groups
        self.adamw.param_groups, self.adamw.state = [others], self.state  # a checkpoint's, maybe
        self.adamw.step()
        for weight in muon["params"]:
            if weight.grad is None:  # frozen
                continue
            state = self.state[weight]
            if not state:
                state["mean"] = torch.zeros_like(weight)  # of the gradients
            mean = state["mean"]
            mean.lerp_(weight.grad, 1 - muon["momentum"])
            update = orthogonal(weight.grad.lerp(mean, muon["momentum"]).flatten(1))
            rate = muon["lr"] * max(1, len(update) / update.shape[1]) ** 0.5
            weight.mul_(1 - muon["lr"] * muon["decay"])
            weight.add_(update.view_as(weight), alpha=-rate)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """(m, n) -> nearly the orthogonal matrix next to it: its singular values from 0.7 to 1.2.

    Five steps of Newton and Schulz with Jordan's coefficients, on the smaller of the two Gram
    matrices: X becomes P X, and so P X X^T P of X X^T, where P is a polynomial of X X^T.
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    gram, step, product = wide @ wide.T, None, None
    for _ in range(5):
        if step is not None:
            gram = step @ gram @ step
        step = torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        step.diagonal().add_(3.4445)
        product = step if product is None else step @ product
    wide = product @ wide
    return wide if len(matrix) <= matrix.shape[1] else wide.T
