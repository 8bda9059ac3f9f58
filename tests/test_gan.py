"""The GAN's losses worked out by hand; what the one-step networks, also the VAE's, depend on."""

import math

import pytest
import torch
from test_diffusion import network, perturbed, unit

import cgan
import cvae


class Linear:
    """Its scores and slopes are known: D(x, text) = <w, x> + the text's first entry."""

    def __init__(self, w):
        self.w = torch.tensor(w)

    def __call__(self, x, text):
        return self.w * x.sum(dim=(1, 2, 3)) + text[:, 0]


def softplus(x):
    return math.log1p(math.exp(x))


def test_the_losses_are_relativistic_pairs_and_penalties():
    x, drawn, text = torch.full((3, 1, 2, 2), 0.5), torch.full((3, 1, 2, 2), -0.25), unit(3)
    real, fake, slope = 0.3 * 2.0, 0.3 * -1.0, 4 * 0.3**2  # the text cancels in each pair
    for gamma in (0.0, 3.0):
        loss = cgan.discriminator_loss(Linear(0.3), x, drawn, text, gamma).item()
        assert loss == pytest.approx(softplus(fake - real) + gamma / 2 * 2 * slope, abs=1e-5)
    loss = cgan.generator_loss(Linear(0.3), x, drawn.requires_grad_(), text)
    assert loss.item() == pytest.approx(softplus(real - fake), abs=1e-5)
    loss.backward()
    assert (drawn.grad < 0).all(), "a step against the gradient raises the score"


def test_gradients_reach_the_right_network():
    generator, discriminator = network(cgan), cgan.Discriminator(cgan.Config(), 8)
    drawn, x = generator(torch.randn(4, cgan.Config.z), unit(4)), torch.rand(4, 1, 28, 28)
    cgan.discriminator_loss(discriminator, x, drawn, unit(4), 3.0).backward()
    assert all(weight.grad is None for weight in generator.parameters())
    assert all(weight.grad.isfinite().all() for weight in discriminator.parameters())
    cgan.generator_loss(discriminator.requires_grad_(False), x, drawn, unit(4)).backward()
    assert all(weight.grad is not None for weight in generator.parameters())
    scores = [discriminator(x, unit(4, seed=seed)) for seed in (1, 2)]
    assert scores[0].shape == (4,) and (scores[0] - scores[1]).abs().max() > 1e-4


@pytest.mark.parametrize("script", [cgan, cvae])
def test_an_image_depends_on_z_and_on_the_text_and_the_walk_ends_at_another(script):
    model, film, text = perturbed(network(script)), [], unit(3)
    z, z_end = torch.randn(2, 3, script.Config.z)
    images, end = (script.sample(model, *x, text) for x in ((z, z_end), (z_end, z)))
    assert images.shape == (3, 1, 28, 28) and images.abs().max() <= 1 and not images.requires_grad
    other_text = script.sample(model, z, z_end, unit(3, seed=2))
    assert min((images - x).abs().max() for x in (end, other_text)) > 1e-2
    assert torch.equal(script.sample(model, z, z_end, text, film), images)
    assert len(film) == 11 and (film[0][1] - images).abs().max() < 1e-5
    assert (film[-1][1] - end).abs().max() < 1e-4
