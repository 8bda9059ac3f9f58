"""The VAE: its two losses against torch.distributions, what its halves depend on, its training."""

import copy

import pytest
import torch
from test_diffusion import FakeRun, unit
from torch.distributions import Bernoulli, Normal, kl_divergence

import cvae
from kit import captions

CONFIG = cvae.Config()


def random_model(seed=0):
    torch.manual_seed(seed)
    model = cvae.VAE(CONFIG, 8)
    with torch.no_grad():
        for p in model.parameters():  # residual branches start at zero
            p.add_(0.05 * torch.randn_like(p))
    return model


def test_the_reconstruction_loss_is_the_likelihood_of_the_pixels():
    torch.manual_seed(0)
    logits, x = torch.randn(3, 1, 28, 28), torch.randint(2, (3, 1, 28, 28)) * 2.0 - 1
    wanted = -Bernoulli(logits=logits).log_prob((x + 1) / 2).sum() / 3
    assert abs(cvae.reconstruction_loss(logits, x) / wanted - 1) < 1e-5


def test_the_kl_loss_is_the_divergence_of_the_posterior_from_the_prior():
    torch.manual_seed(0)
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


def test_the_reconstruction_teaches_the_encoder_through_z():
    model = random_model()
    x = torch.rand(4, 1, 28, 28)
    logits, *_ = model(x, unit(4))
    cvae.reconstruction_loss(logits, x).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.prior.parameters())


def test_the_prior_starts_as_standard_normal_and_moves_where_z_is_drawn():
    torch.manual_seed(0)
    model, noise, text = cvae.VAE(CONFIG, 8), torch.randn(3, CONFIG.z), unit(3)
    assert all(x.abs().max() == 0 for x in model.prior(text))
    assert (cvae.reparametrised(model.prior(text), noise) == noise).all()
    one = cvae.sample(model, noise, noise, text)
    with torch.no_grad():
        model.prior.out.bias += 0.5
    assert (cvae.sample(model, noise, noise, text) - one).abs().max() > 1e-3


def test_both_halves_depend_on_the_text_and_the_image_on_z():
    model = random_model()
    z, other, text, another = (
        torch.randn(4, CONFIG.z),
        torch.randn(4, CONFIG.z),
        unit(4),
        unit(4, seed=2),
    )
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
    assert (images - cvae.sample(model, z, z_end, text)).abs().max() == 0
    assert not images.requires_grad
    assert len(film) == 11 and (film[0][1] - images).abs().max() < 1e-5
    assert (film[-1][1] - cvae.sample(model, z_end, z, text)).abs().max() < 1e-3


@pytest.mark.parametrize("beta", [0.01, 100.0])
def test_training_trades_reconstruction_against_z(monkeypatch, beta):
    monkeypatch.setattr(captions, "MOST", 400)
    torch.manual_seed(0)
    run = FakeRun(cvae, steps=30, batch_size=8)
    run.config.beta = beta
    model = cvae.VAE(run.config, 8)
    ema, start = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    cvae.train(run, model, ema)
    assert set(run.modules) == {"model", "ema", "optimizer"}
    weights = dict(model.named_parameters())
    for name, mean in ema.named_parameters():
        assert (weights[name] - start[name]).abs().max() > 0, name
        assert (mean - start[name]).abs().max() > 0 and (mean - weights[name]).abs().max() > 0, name
    assert set(run.losses[0]) == {"reconstruction_loss", "kl_loss"}
    assert not any(loss.requires_grad for losses in run.losses for loss in losses.values())
    first, last = run.losses[0]["kl_loss"], run.losses[-1]["kl_loss"]
    assert last > 2 * first if beta < 1 else last < 2, "z says nothing where it costs too much"


def test_texts_are_read_centred_and_scaled_by_all_parts(monkeypatch):
    monkeypatch.setattr(captions, "MOST", 400)
    run = FakeRun(cvae, steps=1, batch_size=8)
    cone, known = 3 * torch.randn(8), {}
    run.encode = lambda texts: torch.stack(
        [known.setdefault(text, cone + 0.1 * torch.randn(8)) for text in texts]
    )
    model, ema = (cvae.VAE(run.config, 8) for _ in range(2))
    cvae.train(run, model, ema)
    texts = run.encode(run.made.sentences)
    for half in (half for net in (model, ema) for half in (net.encoder, net.prior, net.decoder)):
        seen, condition = [], half.condition
        condition.net.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        condition(texts)
        assert seen[0].mean(0).abs().max() < 0.2 and 0.8 < seen[0].std() < 1.25
        assert {"condition.text_mean", "condition.text_std"} <= set(half.state_dict())
