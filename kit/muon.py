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
        keep, momenta = muon["momentum"], []
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["mean"] = torch.zeros_like(weight)  # of the gradients
            mean = self.state[weight]["mean"].lerp_(weight.grad, 1 - keep)
            momenta.append(weight.grad.lerp(mean, keep).flatten(1))  # Nesterov's, (out, 9 in)
        for weight, update in zip(weights, orthogonal(momenta)):
            rate = muon["lr"] * max(1, len(update) / update.shape[1]) ** 0.5
            weight.mul_(1 - muon["lr"] * muon["decay"])
            weight.add_(update.view_as(weight), alpha=-rate)


def orthogonal(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each (m, n) -> about the nearest orthogonal matrix, by Newton-Schulz steps."""
    wide = [x if len(x) <= x.shape[1] else x.T for x in matrices]
    wide = [x / (x.norm() + 1e-7) for x in wide]
    results = [None] * len(matrices)
    for size in {len(x) for x in wide}:
        members = [i for i, x in enumerate(wide) if len(x) == size]
        gram = torch.stack([wide[i] @ wide[i].T for i in members])  # (k, m, m)
        step = products = None
        for _ in range(5):  # multiply by a polynomial of the Gram matrix
            gram = gram if step is None else step @ gram @ step
            step = torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
            step.diagonal(dim1=1, dim2=2).add_(3.4445)
            products = step if products is None else step @ products
        for i, product in zip(members, products):
            result = product @ wide[i]
            results[i] = result if result.shape == matrices[i].shape else result.T
    return results  # with singular values from 0.7 to 1.2
