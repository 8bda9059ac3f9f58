"""The optimiser: what Muon does to convolutions, AdamW to the rest, and what a checkpoint keeps."""

import copy

import pytest
import torch

from kit.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(64, 576), (64, 64), (192, 64), (4, 288)])
def test_orthogonal_keeps_directions_and_levels_their_lengths(shape):
    """U S V^T -> U S' V^T with S' of about 1, however unlike the entries of S are."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    lengths = torch.logspace(0, -2, len(v))
    result = u.T @ orthogonal(u * lengths @ v) @ v.T
    assert (result - result.diag().diag()).abs().max() < 0.02, "the directions are the same"
    assert result.diag()[: len(v) // 2].min() > 0.6 and result.diag().max() < 1.25


def layers():
    torch.manual_seed(0)
    parts = torch.nn.Conv2d(8, 16, 3), torch.nn.Linear(5, 7), torch.nn.Conv2d(16, 4, 1)
    parameters = [weight for part in parts for weight in part.parameters()]
    return parameters, Muon(parameters, 1e-3, 0.02)


def train(parameters, optimizer, steps, seed=1):
    torch.manual_seed(seed)
    for _ in range(steps):
        for weight in parameters:
            weight.grad = torch.randn_like(weight) * 100
        optimizer.step()


def test_a_convolution_moves_equally_far_in_every_direction_and_the_rest_as_by_adamw():
    parameters, optimizer = layers()
    before = copy.deepcopy(parameters)
    train(parameters, optimizer, 1)
    for old, new in zip(before, parameters):
        old.grad = new.grad
        if new.ndim == 4:
            moved = (new - old * (1 - 0.02 * 0.01)).flatten(1).detach()
            lengths = torch.linalg.svdvals(moved) / 0.02
            assert lengths.min() > 0.6 and lengths.max() < 1.25, "whatever the gradient's size"
            assert (moved * new.grad.flatten(1)).sum() < 0, "downhill"
    others = [old for old in before if old.ndim < 4]
    torch.optim.AdamW(others, 1e-3, betas=(0.9, 0.99), fused=True).step()
    same = [torch.equal(old, new) for old, new in zip(before, parameters)]
    assert same == [weight.ndim < 4 for weight in parameters]


def test_a_resumed_optimiser_goes_on_bit_for_bit(tmp_path):
    parameters, optimizer = layers()
    train(parameters, optimizer, 3)
    optimizer.param_groups[0]["lr"] = 0.01  # a schedule's
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others, again = layers()
    with torch.no_grad():
        for weight, other in zip(parameters, others):
            other.copy_(weight)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for both in ((parameters, optimizer), (others, again)):
        train(*both, 3, seed=2)
    assert all(torch.equal(weight, other) for weight, other in zip(parameters, others))
    assert [group["peak"] for group in again.param_groups] == [0.02, 1e-3]
    for weight in parameters:
        weight.grad = torch.zeros_like(weight) if weight is not parameters[0] else None
    frozen = parameters[0].detach().clone()
    optimizer.step()
    assert torch.equal(parameters[0], frozen) and all(x.isfinite().all() for x in parameters)
