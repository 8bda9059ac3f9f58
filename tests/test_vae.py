"""The VAE: its two losses against torch.distributions, what its parts depend on and learn."""

import torch
from test_diffusion import network, perturbed, unit
from torch.distributions import Bernoulli, Normal, kl_divergence

import cvae


def test_the_losses_are_likelihood_and_divergence():
    logits, x = torch.randn(3, 1, 28, 28), torch.randint(2, (3, 1, 28, 28)) * 2.0 - 1
    expected = -Bernoulli(logits=logits).log_prob((x + 1) / 2).sum() / 3
    assert abs(cvae.reconstruction_loss(logits, x) / expected - 1) < 1e-5
    posterior, prior = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    q, p = (Normal(mean, (log_var / 2).exp()) for mean, log_var in (posterior, prior))
    assert abs(cvae.kl_loss(posterior, prior) / (kl_divergence(q, p).sum() / 3) - 1) < 1e-5
    assert abs(cvae.kl_loss(prior, prior)) < 1e-6
    assert cvae.reconstruction_loss(logits.bfloat16(), x).dtype == torch.float32
    assert cvae.kl_loss(posterior.bfloat16(), prior.bfloat16()).dtype == torch.float32


def test_gradients_reach_the_right_network():
    """The reconstruction teaches the encoder through z; only the divergence teaches the prior."""
    model, x = perturbed(network(cvae)), torch.rand(4, 1, 28, 28)
    logits, posterior, prior = model(x, unit(4))
    cvae.reconstruction_loss(logits, x).backward(retain_graph=True)
    parts = [*model.encoder.parameters(), *model.decoder.parameters()]
    assert all(weight.grad is not None and weight.grad.any() for weight in parts)
    assert all(weight.grad is None for weight in model.prior.parameters())
    cvae.kl_loss(posterior, prior).backward()
    assert all(weight.grad.any() for weight in model.prior.parameters())
    for one, other in zip(posterior, model.encoder(x, unit(4, seed=2))):
        assert one.shape == (4, cvae.Config.z) and (one - other).abs().max() > 1e-3


def test_the_prior_starts_as_standard_normal_and_moves_where_z_is_drawn():
    model, noise, text = network(cvae), torch.randn(3, cvae.Config.z), unit(3)
    assert not any(x.any() for x in model.prior(text))
    mean, log_var = perturbed(model.prior)(text)
    z = mean + log_var.exp().sqrt() * noise
    assert (cvae.reparametrised((mean, log_var), noise) - z).abs().max() < 1e-6
    expected = cvae.decode(model, z, text)
    assert (cvae.sample(model, noise, noise, text) - expected).abs().max() < 1e-5
    assert (cvae.decode(model, noise, text) - expected).abs().max() > 1e-3
