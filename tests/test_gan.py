"""The GAN: its losses worked out by hand, what its networks depend on, its walk."""

import math

import pytest
import torch
from test_diffusion import perturbed, unit

import cgan

CONFIG = cgan.Config()


class Linear:
    """Its scores and slopes are known: D(x, text) = <w, x> + the text's first entry."""

    def __init__(self, w):
        self.w = torch.tensor(w)

    def __call__(self, x, text):
        return self.w * x.sum(dim=(1, 2, 3)) + text[:, 0]


def softplus(x):
    return math.log1p(math.exp(x))


def test_the_discriminator_loss_is_relativistic_pairs_plus_both_penalties():
    x, drawn, text = torch.full((3, 1, 2, 2), 0.5), torch.full((3, 1, 2, 2), -0.25), unit(3)
    real, fake, slope = 0.3 * 2.0, 0.3 * -1.0, 4 * 0.3**2  # the text cancels in each pair
    for gamma in (0.0, 3.0):
        loss = cgan.discriminator_loss(Linear(0.3), x, drawn, text, gamma).item()
        assert loss == pytest.approx(softplus(fake - real) + gamma / 2 * 2 * slope, abs=1e-5)


def test_the_generator_loss_pulls_drawn_images_above_real_ones():
    x, text = torch.zeros(3, 1, 2, 2), unit(3)
    drawn = torch.full((3, 1, 2, 2), 0.5, requires_grad=True)
    loss = cgan.generator_loss(Linear(0.3), x, drawn, text)
    assert loss.item() == pytest.approx(softplus(-0.6), abs=1e-5)
    loss.backward()
    assert (drawn.grad < 0).all(), "a step against the gradient raises the score"


def test_gradients_reach_the_right_network():
    torch.manual_seed(0)
    generator, discriminator = cgan.Generator(CONFIG, 8), cgan.Discriminator(CONFIG, 8)
    drawn, x = generator(torch.randn(4, CONFIG.z), unit(4)), torch.rand(4, 1, 28, 28)
    cgan.discriminator_loss(discriminator, x, drawn, unit(4), 3.0).backward()
    assert all(weight.grad is None for weight in generator.parameters())
    assert all(weight.grad.isfinite().all() for weight in discriminator.parameters())
    discriminator.zero_grad()
    discriminator.requires_grad_(False)
    cgan.generator_loss(discriminator, x, drawn, unit(4)).backward()
    assert all(weight.grad is not None for weight in generator.parameters())
    assert all(weight.grad is None for weight in discriminator.parameters())


def test_the_image_depends_on_z_and_on_the_text_and_the_score_on_the_text():
    torch.manual_seed(0)
    generator, discriminator = perturbed(cgan.Generator(CONFIG, 8)), cgan.Discriminator(CONFIG, 8)
    (z, other), text, another = torch.randn(2, 4, CONFIG.z), unit(4), unit(4, seed=2)
    with torch.no_grad():
        image = generator(z, text)
        assert image.shape == (4, 1, 28, 28) and image.abs().max() <= 1
        assert (image - generator(other, text)).abs().max() > 1e-2
        assert (image - generator(z, another)).abs().max() > 1e-2
        score = discriminator(image, text)
        assert score.shape == (4,) and (score - discriminator(image, another)).abs().max() > 1e-4
        plain = cgan.Generator(CONFIG, 64)  # one that ignores z ends with one image for each text
        varied = plain(torch.randn(99, CONFIG.z), unit(1, 64).repeat(99, 1)).std(0).mean()
        of_texts = plain(torch.randn(1, CONFIG.z).repeat(99, 1), unit(99, 64)).std(0).mean()
    assert varied > of_texts


def test_the_walk_goes_from_the_sample_to_another_one():
    generator, text, film = perturbed(cgan.Generator(CONFIG, 8)), unit(3), []
    z, z_end = torch.randn(2, 3, CONFIG.z)
    images = cgan.sample(generator, z, z_end, text, film)
    assert torch.equal(images, cgan.sample(generator, z, z_end, text)) and not images.requires_grad
    assert len(film) == 11 and (film[0][1] - images).abs().max() < 1e-5
    assert (film[-1][1] - cgan.sample(generator, z_end, z, text)).abs().max() < 1e-4
