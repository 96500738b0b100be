"""What all engines are alike in."""

from neurokube.engines import Batch, InProcess, Report
from neurokube.engines.base import Kept


class Counting(InProcess):
    """An engine that counts how often its workers start and end."""

    def __init__(self):
        super().__init__()
        self.started = self.ended = 0

    def __enter__(self):
        self.started += 1
        return self

    def __exit__(self, *error):
        self.ended += 1


def work(run_url, step_name, batch, stop):
    return Report(batch.last - batch.first)


def test_a_kept_engine_starts_with_the_first_batch_and_ends_when_it_is_closed():
    engine = Counting()
    kept = Kept(engine)
    with kept:
        assert engine.started == 0
    for _ in range(3):
        with kept:
            outcomes = list(kept.execute(work, "run", "step", [Batch(0, 4)], 1))
        assert [outcome.report.done for outcome in outcomes] == [4]
    assert (engine.started, engine.ended) == (1, 0)
    kept.close()
    kept.close()
    assert (engine.started, engine.ended) == (1, 1)


def test_a_kept_engine_that_was_asked_to_stop_starts_no_batch():
    kept = Kept(InProcess())
    kept.drain()
    assert list(kept.execute(work, "run", "step", [Batch(0, 4)], 1)) == []
