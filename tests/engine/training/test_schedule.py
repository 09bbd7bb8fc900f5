import pytest

from penstock.engine.training.optimizer import learning_rate_factor


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)]
)
def test_rises_then_falls(schedule, middle, end):
    def factor(progress):
        return learning_rate_factor(progress, warmup=0.2, schedule=schedule)

    assert factor(0.0) == 0.0
    assert factor(0.1) == pytest.approx(0.5)
    assert factor(0.2) == pytest.approx(1.0)
    assert factor(0.6) == pytest.approx(middle)
    assert factor(1.0) == pytest.approx(end)
    assert factor(1.1) == pytest.approx(end)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_edges_of_warm_up(warmup):
    factors = [learning_rate_factor(p / 10, warmup=warmup, schedule="linear") for p in range(11)]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert factors[5] == pytest.approx(0.5)
