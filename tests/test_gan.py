"""The GAN: its losses worked out by hand, what its networks depend on, its training loop."""

import copy
import math

import torch
from test_diffusion import FakeRun, unit

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
    loss = cgan.discriminator_loss(Linear(0.3), x, drawn, text, 3.0).item()
    real, fake = 0.3 * 2.0, 0.3 * -1.0  # the text's part cancels in each pair
    slope = 4 * 0.3**2  # |w|^2, on real images and on drawn ones
    assert abs(loss - (softplus(fake - real) + 3.0 / 2 * 2 * slope)) < 1e-5


def test_the_generator_loss_pulls_drawn_images_above_real_ones():
    x, text = torch.zeros(3, 1, 2, 2), unit(3)
    drawn = torch.full((3, 1, 2, 2), 0.5, requires_grad=True)
    loss = cgan.generator_loss(Linear(0.3), x, drawn, text)
    assert abs(loss.item() - softplus(-0.6)) < 1e-5
    loss.backward()
    assert (drawn.grad < 0).all(), "a step against the gradient raises the score"


def test_the_discriminators_step_leaves_the_generator_alone():
    torch.manual_seed(0)
    generator, discriminator = cgan.Generator(CONFIG, 8), cgan.Discriminator(CONFIG, 8)
    drawn = generator(torch.randn(4, CONFIG.z), unit(4))
    cgan.discriminator_loss(discriminator, torch.rand(4, 1, 28, 28), drawn, unit(4), 3.0).backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in discriminator.parameters())


def test_the_image_depends_on_z_and_on_the_text_and_the_score_on_the_text():
    torch.manual_seed(0)
    generator, discriminator = cgan.Generator(CONFIG, 8), cgan.Discriminator(CONFIG, 8)
    with torch.no_grad():
        for p in generator.parameters():  # residual branches start at zero
            p.add_(0.05 * torch.randn_like(p))
        z, other, text, another = (
            torch.randn(4, CONFIG.z),
            torch.randn(4, CONFIG.z),
            unit(4),
            unit(4, seed=2),
        )
        image = generator(z, text)
        assert image.shape == (4, 1, 28, 28) and image.abs().max() <= 1
        assert (image - generator(other, text)).abs().max() > 1e-2
        assert (image - generator(z, another)).abs().max() > 1e-2
        score = discriminator(image, text)
        assert score.shape == (4,) and (score - discriminator(image, another)).abs().max() > 1e-4


def test_an_untrained_generator_already_varies_with_z():
    """Where it does not, training collapses to one image for each text."""
    torch.manual_seed(0)
    with torch.no_grad():
        images = cgan.Generator(CONFIG, 64)(
            torch.randn(200, CONFIG.z), unit(1, dim=64).repeat(200, 1)
        )
        one_z = cgan.Generator(CONFIG, 64)(
            torch.randn(1, CONFIG.z).repeat(200, 1), unit(200, dim=64)
        )
    assert images.std(0).mean() > one_z.std(0).mean()


def test_the_walk_goes_from_the_sample_to_another_one():
    torch.manual_seed(0)
    generator, text, film = cgan.Generator(CONFIG, 8), unit(3), []
    z, z_end = torch.randn(2, 3, CONFIG.z)
    images = cgan.sample(generator, z, z_end, text, film)
    again = cgan.sample(generator, z, z_end, text)
    assert (images - again).abs().max() == 0 and not images.requires_grad
    assert len(film) == 11 and (film[0][1] - images).abs().max() < 1e-5
    with torch.no_grad():
        assert (film[-1][1] - generator(z_end, text)).abs().max() < 1e-4


def test_the_training_loop_moves_both_networks_and_the_mean_lags():
    torch.manual_seed(0)
    run, model = FakeRun(cgan, steps=5, batch_size=8), cgan.Generator(CONFIG, 8)
    ema, start = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    cgan.train(run, model, ema)
    assert {"model", "ema", "discriminator", "optimizer", "optimizer_d"} == set(run.modules)
    weights = dict(model.named_parameters())
    for name, mean in ema.named_parameters():
        assert (weights[name] - start[name]).abs().max() > 0, name
        assert (mean - weights[name]).abs().max() > 0, name
        assert (mean - start[name]).abs().max() > 0, name
    assert len(run.losses) == 5 and set(run.losses[0]) == {"generator_loss", "discriminator_loss"}
    assert not any(loss.requires_grad for losses in run.losses for loss in losses.values())
    assert all(p.requires_grad for p in run.modules["discriminator"].parameters())
