"""Times of steps become right numbers; a peak is the data sheet's, or measured."""

import jax
import pytest

from realm_jax.training import throughput
from realm_jax.training.throughput import StepTimer, data_sheet_flops, peak_flops_per_sec
from tests.training.manual_clock import ManualClock


def test_step_timer():
    clock = ManualClock()
    timer = StepTimer(examples_per_step=16, tokens_per_step=1000, flops_per_step=6e9, peak_flops=30e9, clock=clock)
    assert timer.figures() == {}
    for secs in (0.1, 0.3, 0.2):
        clock.now += secs
        assert timer.step_done() == pytest.approx(secs)
    clock.now += 50
    timer.skip()  # an evaluation is no training time
    assert timer.figures() == {
        "step_secs": pytest.approx(0.2),
        "step_secs_max": pytest.approx(0.3),
        "examples_per_sec": pytest.approx(16 * 3 / 0.6),
        "tokens_per_sec": pytest.approx(5000.0),
        "mfu": pytest.approx(6e9 * 3 / 0.6 / 30e9),
    }
    clock.now += 2
    timer.step_done()
    assert timer.figures()["examples_per_sec"] == pytest.approx(8.0)
    assert timer.step_secs == pytest.approx([0.1, 0.3, 0.2, 2.0])
    assert "mfu" not in _one_step(StepTimer(1, 1, clock=clock), clock).figures()


def _one_step(timer, clock):
    clock.now += 1
    timer.step_done()
    return timer


@pytest.mark.parametrize(
    ("kind", "flops"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v3", 61.5e12), ("NVIDIA A100-SXM4-80GB", 312e12)],
)
def test_known_devices_count_by_their_data_sheet(kind, flops):
    assert data_sheet_flops(kind) == flops


def test_simulated_devices_share_one_measured_peak(monkeypatch):
    monkeypatch.setattr(throughput, "_measured_peak", lambda device: 5e9)
    assert len(jax.devices()) == 8
    assert peak_flops_per_sec() == 5e9


def test_measured_peak_is_plausible():
    assert 1e8 < throughput._measured_peak(jax.devices()[0], size=256, seconds=0.01) < 1e15
