"""The optimiser: what Muon does to convolutions, AdamW to the rest, and what a checkpoint keeps."""

import copy

import pytest
import torch
from conftest import CPU

import a4_full
from kit import run
from kit.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(64, 576), (64, 64), (192, 64), (4, 288)])
def test_orthogonal_keeps_directions_and_levels_their_lengths(shape):
    """U S V^T -> U S' V^T with S' of about 1, however unlike the entries of S are."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    lengths = torch.logspace(0, -2, len(v))
    result = u.T @ orthogonal([torch.eye(3), u * lengths @ v])[1] @ v.T
    assert result.shape == (len(v), len(v))
    assert (result - result.diag().diag()).abs().max() < 0.02, "the directions are the same"
    assert result.diag()[: len(v) // 2].min() > 0.6 and result.diag().max() < 1.25


def layers():
    torch.manual_seed(0)
    convolution, linear = torch.nn.Conv2d(8, 16, 3), torch.nn.Linear(5, 7)
    parameters = [*convolution.parameters(), *linear.parameters()]
    return parameters, Muon(parameters, 1e-3, 0.02)


def train(parameters, optimizer, steps):
    for _ in range(steps):
        for weight in parameters:
            weight.grad = torch.randn_like(weight) * 100
        optimizer.step()


def test_a_convolution_moves_equally_far_in_every_direction_and_the_rest_as_by_adamw():
    parameters, optimizer = layers()
    before = copy.deepcopy(parameters)
    train(parameters, optimizer, 1)
    moved = (parameters[0] - before[0] * (1 - 0.02 * 0.01)).flatten(1)
    lengths = torch.linalg.svdvals(moved.detach()) / 0.02
    assert lengths.min() > 0.6 and lengths.max() < 1.25, "whatever the size of the gradient"
    adamw = torch.optim.AdamW(before[1:], 1e-3, betas=(0.9, 0.99), fused=True)
    for old, new in zip(before[1:], parameters[1:]):
        old.grad = new.grad
    adamw.step()
    for old, new in zip(before[1:], parameters[1:]):
        assert torch.equal(old, new)


def test_its_state_goes_through_a_checkpoint(tmp_path):
    parameters, optimizer = layers()
    torch.manual_seed(1)
    train(parameters, optimizer, 3)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others, again = layers()
    with torch.no_grad():
        for weight, other in zip(parameters, others):
            other.copy_(weight)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for both in ((parameters, optimizer), (others, again)):
        torch.manual_seed(2)
        train(*both, 3)
    for weight, other in zip(parameters, others):
        assert torch.equal(weight, other)
    assert len(optimizer.state) == 4 and [g["peak"] for g in again.param_groups] == [0.02, 1e-3]


def test_a_gradient_of_zero_moves_nothing_to_nan():
    parameters, optimizer = layers()
    for weight in parameters:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert all(weight.isfinite().all() for weight in parameters)


@pytest.mark.parametrize("known", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx2": True}, None])
def test_bfloat16_only_where_the_processor_has_it(monkeypatch, known):
    """None: a PyTorch that does not tell."""
    it = object.__new__(run.Run)
    it.device = CPU
    if known is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    with it.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    fast = bool(known) and any(name.endswith("bf16") for name in known)
    assert product.dtype == (torch.bfloat16 if fast else torch.float32)


def test_the_full_models_weights_are_fit_to_ship():
    model = a4_full.UNet(a4_full.Config(), 512)
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000


def test_a_scaler_changes_nothing_but_at_an_overflow_where_only_momentum_moves():
    both = layers(), layers()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        for weights in zip(both[0][0], both[1][0]):
            gradient = torch.randn_like(weights[0])
            weights[0].grad, weights[1].grad = gradient, gradient * scaler.get_scale()
        if step == 2:
            before = [weight.detach().clone() for weight in both[1][0]]
            both[1][0][0].grad[0, 0, 0, 0] = torch.inf
        else:
            both[0][1].step()
        scaler.scale(torch.ones(()))  # as for a loss
        scaler.step(both[1][1])
        scaler.update()
        if step < 2:
            for plain, scaled in zip(both[0][0], both[1][0]):
                assert (plain - scaled).abs().max() < 1e-5
    assert scaler.get_scale() == 2.0**9, "the scale is halved"
    moved = [(new - old).abs().max() for old, new in zip(before, both[1][0])]
    assert moved[0] > 1e-3 and moved[1:] == [0, 0, 0]
    assert all(weight.isfinite().all() for weight in both[1][0])
