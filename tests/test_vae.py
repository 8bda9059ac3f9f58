"""The VAE: its two losses against torch.distributions, what its halves depend on, its training."""

import pytest
import torch
from test_diffusion import FakeRun, few, perturbed, unit  # noqa: F401
from torch.distributions import Bernoulli, Normal, kl_divergence

import cvae

CONFIG = cvae.Config()


def random_model():
    return perturbed(cvae.VAE(CONFIG, 8))


def test_the_reconstruction_loss_is_the_likelihood_of_the_pixels():
    logits, x = torch.randn(3, 1, 28, 28), torch.randint(2, (3, 1, 28, 28)) * 2.0 - 1
    expected = -Bernoulli(logits=logits).log_prob((x + 1) / 2).sum() / 3
    assert abs(cvae.reconstruction_loss(logits, x) / expected - 1) < 1e-5


def test_the_kl_loss_is_the_divergence_of_the_posterior_from_the_prior():
    posterior, prior = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    q, p = (Normal(mean, (log_var / 2).exp()) for mean, log_var in (posterior, prior))
    assert abs(cvae.kl_loss(posterior, prior) / (kl_divergence(q, p).sum() / 3) - 1) < 1e-5
    assert abs(cvae.kl_loss(prior, prior)) < 1e-6


def test_the_losses_are_float32_in_half_precision_too():
    logits, x = torch.zeros(2, 1, 28, 28, dtype=torch.bfloat16), torch.zeros(2, 1, 28, 28)
    assert cvae.reconstruction_loss(logits, x).dtype == torch.float32
    gaussian = logits[:, 0, 0], logits[:, 0, 0]
    assert cvae.kl_loss(gaussian, gaussian).dtype == torch.float32


def test_z_is_drawn_about_its_mean_with_its_deviation(monkeypatch):
    model, seen = random_model(), []
    mean, log_var = torch.full((4000, 2), 3.0), torch.tensor([0.0, -4.0]).expand(4000, 2)
    monkeypatch.setattr(model.encoder, "forward", lambda x, text: (mean, log_var))
    monkeypatch.setattr(model.decoder, "forward", lambda z, text: seen.append(z))
    model(torch.zeros(4000, 1, 28, 28), unit(4000))
    assert (seen[0].mean(0) - 3).abs().max() < 0.1
    assert (seen[0].std(0) / torch.tensor([1, 0.1353]) - 1).abs().max() < 0.1


def test_gradients_reach_the_right_network():
    """The reconstruction teaches the encoder through z; only the divergence teaches the prior."""
    model, x = random_model(), torch.rand(4, 1, 28, 28)
    logits, posterior, prior = model(x, unit(4))
    cvae.reconstruction_loss(logits, x).backward(retain_graph=True)
    parts = [*model.encoder.parameters(), *model.decoder.parameters()]
    assert all(weight.grad is not None and weight.grad.any() for weight in parts)
    assert all(weight.grad is None for weight in model.prior.parameters())
    cvae.kl_loss(posterior, prior).backward()
    assert all(weight.grad.any() for weight in model.prior.parameters())


def test_the_prior_starts_as_standard_normal_and_moves_where_z_is_drawn():
    model, noise, text = cvae.VAE(CONFIG, 8), torch.randn(3, CONFIG.z), unit(3)
    assert not any(x.any() for x in model.prior(text))
    assert torch.equal(cvae.reparametrised(model.prior(text), noise), noise)
    one = cvae.sample(model, noise, noise, text)
    with torch.no_grad():
        model.prior.out.bias += 0.5
    assert (cvae.sample(model, noise, noise, text) - one).abs().max() > 1e-3


def test_both_halves_depend_on_the_text_and_the_image_on_z():
    model, text, another = random_model(), unit(4), unit(4, seed=2)
    z, other = torch.randn(2, 4, CONFIG.z)
    with torch.no_grad():
        image = cvae.decode(model, z, text)
        assert image.shape == (4, 1, 28, 28) and image.abs().max() <= 1
        assert (image - cvae.decode(model, other, text)).abs().max() > 1e-2
        assert (image - cvae.decode(model, z, another)).abs().max() > 1e-2
        for one, two in zip(model.encoder(image, text), model.encoder(image, another)):
            assert one.shape == (4, CONFIG.z) and (one - two).abs().max() > 1e-3


def test_the_walk_goes_from_the_sample_to_another_one():
    model, text, film = random_model(), unit(3), []
    z, z_end = torch.randn(2, 3, CONFIG.z)
    images = cvae.sample(model, z, z_end, text, film)
    assert torch.equal(images, cvae.sample(model, z, z_end, text)) and not images.requires_grad
    assert len(film) == 11 and (film[0][1] - images).abs().max() < 1e-5
    assert (film[-1][1] - cvae.sample(model, z_end, z, text)).abs().max() < 1e-3


@pytest.mark.parametrize("beta", [0.01, 100.0])
def test_training_trades_reconstruction_against_z(few, beta):  # noqa: F811
    torch.manual_seed(0)
    run = FakeRun(cvae, steps=25, beta=beta)
    cvae.train(run, cvae.VAE(run.config, 8), cvae.VAE(run.config, 8))
    assert {*run.losses[0]} == {"reconstruction_loss", "kl_loss"}
    first, last = run.losses[0]["kl_loss"], run.losses[-1]["kl_loss"]
    assert last > 2 * first if beta < 1 else last < 2, "z says nothing where it costs too much"
