import pytest

from t5jax.training.trainer import SkipMonitor


class Reports:
    def __init__(self):
        self.entries = []

    def log(self, step, metrics):
        self.entries.append((step, dict(metrics)))

    def close(self):
        pass


def make(max_skipped: int, reports: Reports) -> SkipMonitor:
    return SkipMonitor(
        max_skipped, tracker=reports, chunk_ids=lambda step: [10 * step, 10 * step + 1]
    )


def test_skips_reports_each_with_the_chunks_of_its_step():
    reports = Reports()
    skips = make(2, reports)
    for step, skipped in enumerate([0.0, 1.0, 1.0, 0.0, 1.0, 1.0], start=1):
        skips.check(step, {"loss": float("nan") if skipped else 1.0, "skipped": skipped})
    assert [step for step, _ in reports.entries] == [2, 3, 5, 6]
    assert reports.entries[-1][1] == {"skipped/steps": 4, "skipped/chunks": [60, 61]}


def test_skips_stops_after_too_many_in_a_row():
    skips = make(2, Reports())
    skips.check(1, {"loss": 1.0, "skipped": 1.0})
    skips.check(2, {"loss": 1.0, "skipped": 1.0})
    with pytest.raises(ValueError, match="at most 2 steps in a row may be skipped, got 3 up to st"):
        skips.check(3, {"loss": 1.0, "skipped": 1.0})


@pytest.mark.parametrize("metrics", [{}, {"skipped": 0.0}])
def test_skips_stops_at_once_where_a_bad_step_was_taken(metrics):
    with pytest.raises(ValueError, match="must be finite, got inf at step 4"):
        make(2, Reports()).check(4, {"loss": float("inf"), **metrics})
