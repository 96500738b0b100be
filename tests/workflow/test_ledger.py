import threading
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.blocks import Blocks, Grid
from neurokube.engines import Batch
from neurokube.errors import DataError
from neurokube.volumes import Store
from neurokube.workflow.ledger import Ledger, Record

PROPERTY = settings(max_examples=50, deadline=None)
GRID = Grid((6, 10, 10), (2, 4, 4))  # 3 x 3 x 3 cells
AT_ONCE, NEVER = 0.0, 1e9


def record(block):
    return Record(block, seconds=0.5, host="here", attempt=1, bytes=100, peak_memory=1000, checksums=[block, None])


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def ledger(store, cells=(1, 1, 1)):
    return Ledger(store, "stage/ledger/key/step", Blocks(GRID, cells))


def note(of, batch, blocks, interval=AT_ONCE):
    writer = of.writer(batch, interval)
    for block in blocks:
        writer.add(record(block))
    writer.close()


def empty_store():
    store = Store("memory://ledger")
    store.delete_all()
    return store


def test_what_was_recorded_is_not_remaining(store):
    note(ledger(store), Batch(0, 10), [0, 3, 4])
    assert ledger(store).remaining(Batch(0, 10)) == [1, 2, 5, 6, 7, 8, 9]
    assert ledger(store).count() == 3
    assert sorted(r.block for _, r in ledger(store).records()) == [0, 3, 4]


def test_a_record_comes_back_as_it_was_written(store):
    note(ledger(store), Batch(0, 2), [1])
    assert [r for _, r in ledger(store).records()] == [record(1)]


def test_a_finished_batch_is_compacted_to_one_object(store):
    note(ledger(store), Batch(0, 4), [0, 1])
    assert len(store.keys()) == 2
    note(ledger(store), Batch(0, 4), [2, 3])
    assert store.keys() == ["stage/ledger/key/step/1x1x1/00000000-00000004/all.json"]
    assert sorted(r.block for _, r in ledger(store).records()) == [0, 1, 2, 3]


def test_records_wait_for_the_interval_and_are_written_on_closing(store):
    writer = ledger(store).writer(Batch(0, 3), NEVER)
    writer.add(record(0))
    assert store.keys() == []
    writer.close()
    assert ledger(store).remaining(Batch(0, 3)) == [1, 2]


def test_a_batch_of_which_nothing_was_done_leaves_no_object(store):
    ledger(store).writer(Batch(0, 3), AT_ONCE).close()
    assert store.keys() == []


def test_a_batch_done_twice_counts_once(store):
    for _ in range(2):
        note(ledger(store), Batch(0, 2), [0, 1])
    assert ledger(store).count() == 2
    assert len(store.keys()) == 1


def test_what_others_record_is_seen_by_an_open_ledger(store):
    reader = ledger(store)
    assert reader.count() == 0
    note(ledger(store), Batch(0, 2), [0])
    assert reader.count() == 1
    note(ledger(store), Batch(0, 2), [1])
    assert reader.count() == 2


SHAPES = st.tuples(*[st.integers(1, 3)] * 3)


@st.composite
def passes(draw):
    """Some blocks done in some batch, once each for several shapes of blocks."""
    rounds = []
    for shape in draw(st.lists(SHAPES, min_size=1, max_size=3)):
        count = len(Blocks(GRID, shape))
        first, last = sorted(draw(st.sets(st.integers(0, count), min_size=2, max_size=2)))
        rounds.append((shape, Batch(first, last), sorted(draw(st.sets(st.integers(first, last - 1))))))
    return rounds


def recorded(rounds):
    store = empty_store()
    for shape, batch, blocks in rounds:
        note(ledger(store, shape), batch, blocks)
    members = chain.from_iterable(Blocks(GRID, shape).members(b) for shape, _, blocks in rounds for b in blocks)
    return store, set(members)


@PROPERTY
@given(passes(), SHAPES)
def test_exactly_the_blocks_with_a_cell_not_covered_remain_whatever_the_shapes(rounds, shape):
    store, covered = recorded(rounds)
    found = ledger(store, shape)
    blocks = found.blocks
    expected = [block for block in range(len(blocks)) if set(blocks.members(block)) - covered]
    assert found.remaining() == expected
    assert found.count() == len(blocks) - len(expected)
    assert set(np.flatnonzero(found.done())) == covered


@PROPERTY
@given(passes(), SHAPES, st.data())
def test_a_batch_knows_its_own_remaining_blocks(rounds, shape, data):
    store, _ = recorded(rounds)
    count = len(Blocks(GRID, shape))
    first, last = sorted(data.draw(st.sets(st.integers(0, count), min_size=2, max_size=2)))
    everything = ledger(store, shape).remaining()
    assert ledger(store, shape).remaining(Batch(first, last)) == [b for b in everything if first <= b < last]


@PROPERTY
@given(passes(), st.sets(st.integers(0, len(GRID) - 1)))
def test_forgetting_cells_takes_back_the_blocks_that_hold_them_and_no_other(rounds, gone):
    store, _ = recorded(rounds)
    kept = [
        Blocks(GRID, shape).members(block)
        for shape, _, blocks in rounds
        for block in blocks
        if not gone.intersection(Blocks(GRID, shape).members(block))
    ]
    found = ledger(store)
    found.forget(gone)
    for reader in (found, ledger(store)):
        assert set(np.flatnonzero(reader.done())) == set(chain.from_iterable(kept))


def test_a_forgotten_block_can_be_recorded_again(store):
    note(ledger(store), Batch(0, 4), range(4))
    found = ledger(store)
    found.forget([2])
    assert found.remaining(Batch(0, 4)) == [2]
    note(found, Batch(0, 4), [2])
    assert ledger(store).remaining(Batch(0, 4)) == []
    assert len(store.keys()) == 1


class CompactedMeanwhile(Store):
    """A store whose first listing is followed by another worker's compaction."""

    def keys(self, prefix=""):
        listed = super().keys(prefix)
        if any(not key.endswith("/all.json") for key in listed):
            note(ledger(Store(self.url)), Batch(0, 3), [2])
        return listed


def test_an_object_that_vanishes_between_listing_and_reading_loses_no_record(store):
    note(ledger(store), Batch(0, 3), [0, 1])
    assert ledger(CompactedMeanwhile(store.url)).remaining(Batch(0, 3)) == []


def test_a_record_object_that_is_damaged_is_named(store):
    note(ledger(store), Batch(0, 3), [0])
    (key,) = store.keys()
    store.write(key, b"[{")
    with pytest.raises(DataError, match="damaged JSON") as error:
        ledger(store).remaining()
    assert str(error.value).startswith(f"{store.url}/{key}: ")


def test_two_workers_of_one_batch_lose_nothing(store):
    workers = [
        threading.Thread(target=note, args=(ledger(store), Batch(0, 20), blocks))
        for blocks in (range(0, 20), range(19, -1, -1))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert ledger(store).remaining(Batch(0, 20)) == []
    assert {r.block for _, r in ledger(store).records()} == set(range(20))


@PROPERTY
@given(st.integers(0, 200), st.integers(1, 20))
def test_shares_cut_all_blocks_into_nearly_equal_batches(blocks, of):
    shares = [Batch.share(index, of, blocks) for index in range(of)]
    assert [block for share in shares for block in range(share.first, share.last)] == list(range(blocks))
    sizes = [share.last - share.first for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert [Batch.parse(str(share)) for share in shares] == shares
