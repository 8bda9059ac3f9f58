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
        self.adamw.param_groups, self.adamw.state = [others], self.state  # both may be reloaded
        self.adamw.step()
        weights = [weight for weight in muon["params"] if weight.grad is not None]  # not frozen
        for weight, update in zip(weights, orthogonal([self.momentum(w) for w in weights])):
            rate = muon["lr"] * max(1, len(update) / update.shape[1]) ** 0.5
            weight.mul_(1 - muon["lr"] * muon["decay"])
            weight.add_(update.view_as(weight), alpha=-rate)

    def momentum(self, weight: torch.Tensor) -> torch.Tensor:
        """(out, in, 3, 3) -> (out, 9 in): Nesterov momentum of the gradients."""
        keep, state = self.param_groups[0]["momentum"], self.state[weight]
        if not state:
            state["mean"] = torch.zeros_like(weight)  # of the gradients
        state["mean"].lerp_(weight.grad, 1 - keep)
        return weight.grad.lerp(state["mean"], keep).flatten(1)


def orthogonal(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each (m, n) -> roughly the nearest orthogonal matrix (singular values 0.7 to 1.2), by five
    Newton-Schulz steps. A step multiplies X by a polynomial of its smaller Gram matrix.
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
    """Gram matrices (k, m, m) -> the product of the five steps' polynomials (k, m, m)."""
    step, product = None, None
    for _ in range(5):
        if step is not None:
            gram = step @ gram @ step
        step = torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        step.diagonal(dim1=1, dim2=2).add_(3.4445)
        product = step if product is None else step @ product
    return product
