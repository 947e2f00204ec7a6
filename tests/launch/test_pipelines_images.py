"""Drawing images: an image belongs to its seed and number, costs are exact, what does not fit is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.digits import load_split
from data.errors import UserError
from data.images import save_statistics
from launch.pipelines.images import ImagePipeline, Options
from tests.train.digits import make


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    save_statistics(folder, load_split("train")[0], 10)
    return folder


@pytest.fixture(scope="module")
def flow(assets):
    return ImagePipeline(*make("flow", assets), ImagePipeline(*make("flow", assets)))


def test_an_image_belongs_to_its_seed_and_number_and_not_to_its_batch(flow):
    options = Options(steps=2, solver="ancestral")
    whole = flow([3, 1, 4, 1], options, seed=5)
    assert whole.images.shape == (4, 8, 8, 1) and whole.ledger.network_calls == 2 and whole.weights is None
    small = ImagePipeline(flow.task, flow.variables, rows=3)  # in two batches, the second one filled up
    np.testing.assert_allclose(small([3, 1, 4, 1], options, seed=5).images, whole.images, atol=1e-5)
    later = flow([4, 1, 4, 1], options, seed=5, first=2)
    np.testing.assert_allclose(later.images[:2], whole.images[2:], atol=1e-5)
    assert np.abs(flow([3, 1, 4, 1], options, seed=6).images - whole.images).max() > 1e-3


def test_guidance_is_traced_counts_twice_and_has_an_interval(flow):
    labels = [0, 1, 2, 3]
    some = [flow(labels, Options(steps=3, solver="euler", guidance=w)) for w in (2.0, 3.0)]
    assert some[0].ledger.network_calls == 6
    assert (
        len(flow._programs) == len({key for key in flow._programs})
        and np.abs(some[0].images - some[1].images).max() > 1e-4
    )
    programs = len(flow._programs)
    flow(labels, Options(steps=3, solver="euler", guidance=4.0))
    assert np.abs(some[0].images - some[1].images).max() > 1e-4
    programs = len(flow._programs)
    flow(labels, Options(steps=3, solver="euler", guidance=4.0))
    assert len(flow._programs) == programs, "another weight needs no other program"
    inside = flow(labels, Options(steps=3, solver="euler", guidance=2.0, interval=(0.1, 0.5)))
    assert inside.ledger.network_calls == 4  # σ is 1, 2/3, 1/3
    same = flow(labels, Options(steps=3, solver="euler", guidance=2.0, guide="autoguidance"))
    plain = flow(labels, Options(steps=3, solver="euler"))
    np.testing.assert_allclose(same.images, plain.images, atol=1e-5)  # guided away from itself


def test_particles_are_weighed_inside_each_image(flow):
    labels = np.array([0, 1, 2])
    made = flow(labels, Options(steps=8, guidance=2.0, particles=4))
    assert made.images.shape == (3, 8, 8, 1) and made.ledger.network_calls == 8 * 2 * 4
    assert made.weights is not None and made.weights.logw.shape == (3, 4) and made.weights.ess.shape == (8, 3)
    alone = flow(labels[1:2], Options(steps=8, guidance=2.0, particles=4), first=1)
    np.testing.assert_allclose(alone.images[0], made.images[1], atol=1e-4)
    unguided = flow(labels, Options(steps=8, particles=4))
    np.testing.assert_array_equal(unguided.weights.logw, 0.0)


def test_a_search_gets_the_plain_sampler(flow):
    labels = jnp.array([2, 7])
    run = flow.run(labels, Options(steps=2, solver="euler"))
    start = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    found = jax.jit(lambda x: run(x, 0).x)(start)
    assert found.shape == start.shape and run(start, 0).ledger.network_calls == 2
    with pytest.raises(UserError, match="particles=1"):
        flow.run(labels, Options(particles=2))


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "calls"), [("ict", 1), ("ict", 3), ("scm", 2), ("mean_flow", 1), ("shortcut", 2)])
def test_few_step_models_have_their_own_samplers(variant, calls, assets):
    pipeline = ImagePipeline(*make(variant, assets))
    made = pipeline([1, 2], Options(steps=calls))
    assert made.ledger.network_calls == calls and np.isfinite(made.images).all() and not pipeline.follows_slopes


def test_what_does_not_fit_is_refused_before_anything_runs(flow, assets):
    for message, options in (
        ("steps and particles", {"steps": 0}),
        ("choose one of sde, euler", {"solver": "magic"}),
        ("guide is", {"guide": "stars"}),
        ("leave the solver out", {"solver": "heun", "particles": 2}),
    ):
        with pytest.raises(UserError, match=message):
            Options(**options)
    with pytest.raises(UserError, match=r"labels must be numbers in 0\.\.10"):
        flow([11])
    lonely = ImagePipeline(flow.task, flow.variables)
    with pytest.raises(UserError, match="needs a weaker model"):
        lonely([1], Options(guidance=2.0, guide="autoguidance"))
    jumps, average = (ImagePipeline(*make(v, assets)) for v in ("ict", "mean_flow"))
    with pytest.raises(UserError, match="not its slope"):
        jumps([1], Options(solver="heun"))
    with pytest.raises(UserError, match="have no guidance"):
        average([1], Options(guidance=2.0))
