"""Schedules, decay, learners' own rates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.training.optimizer import OptimizerConfig, decayed


def rates(config, num_steps, steps, learner=None):
    return [float(config.schedule(num_steps, learner)(step)) for step in steps]


def test_linear_warm_up_then_linear_decay_to_zero():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    assert rates(config, 110, [0, 4, 9]) == pytest.approx([0.1, 0.5, 1.0])
    assert rates(config, 110, [10, 60, 109, 110, 500]) == pytest.approx([1.0, 0.5, 0.01, 0.0, 0.0])
    assert rates(OptimizerConfig(learning_rate=1.0, warmup_steps=0), 10, [0, 5]) == pytest.approx([1.0, 0.5])
    constant = OptimizerConfig(learning_rate=2.0, warmup_steps=4, decay="constant")
    assert rates(constant, 10, [0, 3, 9, 100]) == pytest.approx([0.5, 2.0, 2.0, 2.0])


def test_cosine_decay_to_a_share_of_the_peak():
    """RA-DIT's: 1e-5 after 200 steps, 1e-7 after 500; halfway the mean of both, at a third of the way cos 60°."""
    config = OptimizerConfig(learning_rate=1e-5, warmup_steps=200, decay="cosine", final_share=0.01)
    assert rates(config, 500, [0, 99, 199, 200]) == pytest.approx([5e-8, 5e-6, 1e-5, 1e-5], rel=1e-5)
    third = 1e-7 + 0.75 * (1e-5 - 1e-7)
    assert rates(config, 500, [300, 350, 500, 900]) == pytest.approx([third, 5.05e-6, 1e-7, 1e-7], rel=1e-5)
    linear = dataclasses.replace(config, decay="linear")
    assert rates(linear, 500, [100, 350, 500]) == pytest.approx([5.05e-6, 5.05e-6, 1e-7], rel=1e-5)
    with pytest.raises(ValueError, match=r"final_share: expected a share between 0 and 1, got 1.5"):
        OptimizerConfig(final_share=1.5)
    with pytest.raises(ValueError, match=r"final_share=0.1 is of a decay, and decay is 'constant'; set one of them"):
        OptimizerConfig(decay="constant", final_share=0.1)


def test_weight_decay_is_of_matrices():
    tree = {"a": {"output": 0, "scale": 0, "bias": 0, "query": {"kernel": 0, "lora_a": 0, "lora_b": 0}}}
    assert decayed(tree)["a"] == {
        "output": True, "scale": False, "bias": False, "query": {"kernel": True, "lora_a": True, "lora_b": True},
    }  # fmt: skip


def test_the_released_warm_up():
    """min(10000, max(100, steps / 10)): the rate peaks at the last warm-up step."""
    config = OptimizerConfig(learning_rate=1.0)
    for num_steps, warmup in ((200_000, 10_000), (50_000, 5_000), (500, 100)):
        before, peak, after = rates(config, num_steps, [warmup - 2, warmup - 1, warmup + 1])
        assert before < peak == pytest.approx(1.0, rel=2e-2) and after < peak


def test_learners_have_their_own_peaks_and_thaw():
    config = OptimizerConfig(
        learning_rate=1.0, warmup_steps=0, decay="constant", learner_rates=(("a", 0.25),), frozen_steps=(("b", 3),)
    )
    assert rates(config, 10, [0, 5], "a") == [0.25, 0.25]
    assert rates(config, 10, [0, 2, 3], "b") == [0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match=r"learner_rates names \['a'\]; this task's learners: b, c"):
        config.build(10, ("b", "c"))
    with pytest.raises(ValueError, match=r"frozen_steps names \['b'\]"):
        config.build(10, ("a", "c"))
    with pytest.raises(ValueError, match=r"learning_rate must be positive, got -1.0"):
        OptimizerConfig(learning_rate=-1.0)


def params():
    return {
        "a": {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}},
        "b": {"table": {"embedding": jnp.ones((3, 2))}},
    }


def test_decay_spares_biases_and_norms():
    assert decayed(params()) == {
        "a": {"dense": {"kernel": True, "bias": False}, "norm": {"scale": False}},
        "b": {"table": {"embedding": True}},
    }
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=0, decay="constant", weight_decay=0.1)
    optimizer = config.build(10, ("a", "b"))
    zeros = jax.tree.map(jnp.zeros_like, params())
    updates, _ = optimizer.update(zeros, optimizer.init(params()), params())
    np.testing.assert_allclose(updates["a"]["dense"]["kernel"], -0.05, rtol=1e-6)  # rate × decay × parameter
    np.testing.assert_allclose(updates["b"]["table"]["embedding"], -0.05, rtol=1e-6)
    assert not np.any(updates["a"]["dense"]["bias"]) and not np.any(updates["a"]["norm"]["scale"])


def test_a_frozen_learner_does_not_move_at_all():
    config = OptimizerConfig(
        learning_rate=0.5, warmup_steps=0, weight_decay=0.1, learner_rates=(("b", 5.0),), frozen_steps=(("b", 2),)
    )
    optimizer = config.build(10, ("a", "b"))
    now, state = params(), optimizer.init(params())
    grads = jax.tree.map(jnp.ones_like, now)
    for step in range(3):
        before = now
        updates, state = optimizer.update(grads, state, now)
        now = jax.tree.map(jnp.add, now, updates)
        moved = np.abs(now["b"]["table"]["embedding"] - before["b"]["table"]["embedding"]).max()
        assert moved == 0.0 if step < 2 else moved > 1.0
        assert np.abs(now["a"]["dense"]["bias"] - before["a"]["dense"]["bias"]).min() > 0.01


def test_the_gradient_of_all_learners_is_clipped_together():
    """Adam forgets a common scale, so the second moments tell: 4 + 2 + 2 + 6 numbers of 3 clipped to norm 1."""
    optimizer = OptimizerConfig(clip_norm=1.0, b2=0.5).build(10, ("a", "b"))
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3.0), params())
    _, state = optimizer.update(grads, optimizer.init(params()), params())
    second_moments = [s.nu for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "nu")) if hasattr(s, "nu")]
    total = sum(float(leaf.sum()) for leaf in jax.tree.leaves(second_moments))
    assert total == pytest.approx(0.5 * 1.0, rel=1e-5)  # (1 - b2) × Σ g²


def test_one_adam_step_by_hand():
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=0, decay="constant", weight_decay=0.0, clip_norm=0.0, b1=0.9, b2=0.999, eps=1e-6
    )
    optimizer = config.build(10, ("a",))
    now, state = {"a": {"kernel": jnp.array([1.0, 2.0])}}, None
    state = optimizer.init(now)
    m = v = np.zeros(2)
    expected = np.array([1.0, 2.0])
    for count, gradient in enumerate(([0.5, -2.0], [0.1, 3.0]), 1):
        g = np.array(gradient)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        expected = expected - 0.1 * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-6)
        updates, state = optimizer.update({"a": {"kernel": jnp.asarray(g, jnp.float32)}}, state, now)
        now = jax.tree.map(jnp.add, now, updates)
    np.testing.assert_allclose(now["a"]["kernel"], expected, rtol=1e-5)


def test_frozen_parameters_neither_move_nor_decay_nor_have_moments():
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=0, decay="constant", weight_decay=0.1)
    optimizer = config.build(10, ("a", "b"), ("a/dense",))
    state = optimizer.init(params())
    ones = jax.tree.map(jnp.ones_like, params())
    updates, _ = optimizer.update(ones, state, params())
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates["a"]["dense"]))
    assert all((leaf < 0).all() for leaf in jax.tree.leaves((updates["a"]["norm"], updates["b"])))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(state)]
    assert not [path for path in paths if "a/dense" in path] and [path for path in paths if "b/table" in path]
    # what is trained moves as it would with nothing frozen (the gradient is not clipped here)
    free = dataclasses.replace(config, clip_norm=0.0)
    (got, _), (want, _) = (
        opt.update(ones, opt.init(params()), params())
        for opt in (free.build(10, ("a", "b"), ("a/dense",)), free.build(10, ("a", "b")))
    )
    jax.tree.map(np.testing.assert_array_equal, got["b"], want["b"])


def test_a_prefix_freezes_whole_names_only():
    optimizer = OptimizerConfig(warmup_steps=0).build(10, ("a", "b"), ("a/den",))
    updates, _ = optimizer.update(params(), optimizer.init(params()), params())
    assert all((leaf != 0).all() for leaf in jax.tree.leaves(updates))
