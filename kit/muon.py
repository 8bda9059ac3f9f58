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
        weights = [weight for weight in muon["params"] if weight.grad is not None]  # not frozen
        for weight, update in zip(weights, orthogonal([self.momentum(w) for w in weights])):
            rate = muon["lr"] * max(1, len(update) / update.shape[1]) ** 0.5
            weight.mul_(1 - muon["lr"] * muon["decay"])
            weight.add_(update.view_as(weight), alpha=-rate)

    def momentum(self, weight: torch.Tensor) -> torch.Tensor:
        """(out, in, 3, 3) -> (out, 9 in): Nesterov's, of the gradients."""
        keep, state, gradient = self.param_groups[0]["momentum"], self.state[weight], weight.grad
        if not state:
            state["mean"] = torch.zeros_like(weight)  # of the gradients
        state["mean"].lerp_(gradient, 1 - keep)
        return gradient.lerp(state["mean"], keep).flatten(1)


def orthogonal(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each (m, n) -> nearly the orthogonal matrix next to it: singular values from 0.7 to 1.2.

    Five steps of Newton and Schulz with Jordan's coefficients, on the smaller of the two Gram
    matrices: X becomes P X, and so P X X^T P of X X^T, where P is a polynomial of X X^T. Those of
    one size are worked on together, since each alone is too little for a processor or a GPU.
    """
    wide = [x if len(x) <= x.shape[1] else x.T for x in matrices]
    wide = [x / (x.norm() + 1e-7) for x in wide]
    results = [None] * len(matrices)
    for size in {len(x) for x in wide}:
        members = [i for i, x in enumerate(wide) if len(x) == size]
        products = polynomial(torch.stack([wide[i] @ wide[i].T for i in members]))
        for i, product in zip(members, products):
            result = product @ wide[i]
            results[i] = result if result.shape == matrices[i].shape else result.T
    return results


def polynomial(gram: torch.Tensor) -> torch.Tensor:
    """Gram matrices (k, m, m) -> what their five steps amount to (k, m, m)."""
    step, product = None, None
    for _ in range(5):
        if step is not None:
            gram = step @ gram @ step
        step = torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        step.diagonal(dim1=1, dim2=2).add_(3.4445)
        product = step if product is None else step @ product
    return product
