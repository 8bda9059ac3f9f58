"""a5: paths that lead to images, jumps to their ends, and new noise between."""

import signal
from functools import partial

import pytest
import torch
from conftest import SMALL, last_of
from test_diffusion import ALPHAS_BAR, FakeRun, ideal, network, perturbed, start
from test_run import interrupt

import a5_fast
from a5_fast import JUMPS


def test_a_path_passes_where_jumps_begin_and_is_drawn_with_guidance():
    run = FakeRun(a5_fast, 4, path_scale=3.0)
    model, captions = perturbed(network(a5_fast, run.config)), run.captions(*run.load_data())
    texts, state = run.encode(captions.sentences), torch.get_rng_state()
    told, points, ends = a5_fast.draw_paths(run, model, texts, captions, 200)
    assert told.shape == (200,) and points.shape[:2] == (200, 4) and len(ends) == 200
    film, text, n = [], texts[told[:9]], 9 * [torch.Generator()]
    v = partial(a5_fast.guided_v, model=model, text=text, scale=3.0, interval=(350, 700))
    end = a5_fast.sample(v, points[:9, 0], 11, 0.0, n, film)
    assert (end - ends[:9]).abs().max() < 1e-4
    places = [film[k] for k in (0, 6, 7, 8)]
    assert tuple(t for t, _, _ in places) == JUMPS
    for j, (_, x_t, _) in enumerate(places):
        assert (x_t - points[:9, j]).abs().max() < 1e-4
    plain = a5_fast.sample(partial(model, text=text), points[:9, 0], 11, 0.0, n)
    assert (plain - end).abs().max() > 1e-3, "guided"
    assert torch.equal(torch.get_rng_state(), state), "what is drawn afterwards is not disturbed"
    torch.rand(5)
    again = a5_fast.draw_paths(run, model, texts, captions, 200)
    assert all(map(torch.equal, again, (told, points, ends))), "whatever was drawn before"


def test_the_loss_is_zero_for_jumps_to_the_ends_and_half_of_them_start_in_noise():
    points, ends, seen = torch.randn(64, 4, 1, 28, 28), torch.rand(64, 1, 28, 28), []

    def model(x_t, t):
        seen.extend(t.tolist())
        assert torch.equal(x_t, points[range(64), [JUMPS.index(x) for x in t.tolist()]])
        return ideal(ends)(x_t, t)

    losses = [a5_fast.jump_loss(model, points, ends, ALPHAS_BAR) for _ in range(50)]
    assert max(losses) < 1e-4 and a5_fast.jump_loss(model, points, -ends, ALPHAS_BAR) > 0.1
    shares = [seen.count(t) / len(seen) for t in JUMPS]
    assert 0.45 < shares[0] < 0.55 and all(0.13 < share < 0.2 for share in shares[1:])


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("eta", [0.0, 0.1, 1.0])
def test_each_jump_lands_on_an_image_and_part_of_its_noise_is_new(steps, eta):
    model, film, (x_T, generators) = perturbed(network(a5_fast)), [], start(2)
    v = partial(model, text=torch.ones(2, 1 + a5_fast.WORDS, 8))
    x = a5_fast.sample(v, x_T, steps, eta, generators, film)
    assert [t for t, _, _ in film] == [*JUMPS[:steps], 0] and torch.equal(film[0][1], x_T)
    generators = start(2)[1]
    for (t, x_t, x0_hat), (t_next, x_next, _) in zip(film, film[1:]):
        a, a_next = ALPHAS_BAR[t], ALPHAS_BAR[t_next]
        with torch.no_grad():
            jump = a.sqrt() * x_t - (1 - a).sqrt() * v(x_t, torch.full((2,), t))
        assert torch.equal(x0_hat, jump.clamp(-1, 1))
        old = (x_t - a.sqrt() * x0_hat) / (1 - a).sqrt()
        new = torch.stack([torch.randn(1, 28, 28, generator=x) for x in generators])
        kept = (a * (1 - a_next) / (a_next * (1 - a)).clamp(min=1e-20)) ** (eta / 2)
        noise = kept * old + (1 - kept**2).sqrt() * new  # DDIM Eq. 12, in its terms
        assert (x_next - a_next.sqrt() * x0_hat - (1 - a_next).sqrt() * noise).abs().max() < 1e-4
    assert torch.equal(x, film[-1][1]) and (x - x0_hat).abs().max() < 1e-5


def test_stopped_among_the_jumps_it_resumes_and_learns_the_same(here, tmp_path, monkeypatch):
    """The same paths, drawn by the same teacher: the model as it was before the first jump."""
    command = f"a5_fast.py {SMALL.replace('steps 4', 'steps 20', 1)} --clip tiny"
    (half := tmp_path / "half").mkdir()
    with monkeypatch.context() as patch:
        interrupt(patch, a5_fast, "jump_loss", 2, signal.SIGINT)
        assert "saved at step 17 of 20" in here(command, half, check=130).stderr
    assert "resuming from step 17 of 20" in here(command, half).stderr
    calls = interrupt(monkeypatch, a5_fast, "draw_paths", 0)
    here(command, tmp_path)
    one, other = (torch.load(last_of(x, "a5_fast"), weights_only=True) for x in (tmp_path, half))
    for part in ("model", "teacher"):
        assert all(torch.equal(x, other[part][name]) for name, x in one[part].items())
    assert len(calls) == 1 and (one["model"]["inp.weight"] != one["teacher"]["inp.weight"]).any()
    assert one["teacher"]["out.weight"].any(), "it has learned: at the start these are zero"


def test_the_flags_decide_the_calls_and_how_much_noise_is_new(here, tmp_path):
    for flags in ("", "--eta 0", "--sample-steps 1"):
        here(f"a5_fast.py --prompt three --n 2 {flags}", tmp_path)
    assert len({path.read_bytes() for path in tmp_path.rglob("prompt_*.png")}) == 3
