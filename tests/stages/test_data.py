"""What a step reads and writes its tables by."""

import numpy as np
import pytest

from neurokube.blocks import Grid
from neurokube.errors import DataError
from neurokube.stages.base import Data, Source, TableOutput
from neurokube.volumes import Store

CELLS = 80


@pytest.fixture
def tables(tmp_path):
    """Two tables of many cells, written."""
    grid = Grid((CELLS, 1, 1), (1, 1, 1))
    outputs = {name: TableOutput(name, grid) for name in ("one", "other")}
    source = Source("made", "made", outputs, {name: str(tmp_path / name) for name in outputs})
    data = Data({}, source)
    for cell in range(CELLS):
        data.put("one", cell, np.arange(cell))
        data.put("other", cell, np.array([-cell]))
    return source


def seen(source):
    return Data({"made": source}, Source("none", "none", {}, {}))


def test_reading_ahead_yields_every_cell_once_and_changes_no_array(tables):
    data = seen(tables)
    cells = []
    for cell in data.ahead(range(CELLS), "made.one", "made.other", "made.absent"):
        assert np.array_equal(data.table("made.one", cell), np.arange(cell))
        if cell % 3:
            assert data.table("made.other", cell) == [-cell]
        cells.append(cell)
    assert cells == list(range(CELLS))
    # what was not asked for is not kept
    assert not data._begun


def test_what_is_written_after_it_was_read_is_read_anew(tables):
    data = Data({}, tables)
    for _ in data.ahead([3], "one"):
        pass
    data.put("one", 3, np.array([7]))
    assert data.table("one", 3) == [7]


def test_a_missing_table_is_named_when_its_cell_comes(tables, tmp_path):
    (tmp_path / "one" / "5.0.0.npy").unlink()
    data, read = seen(tables), []
    with pytest.raises(DataError, match=r"5\.0\.0\.npy: cannot be read \(it is missing\)"):
        for cell in data.ahead(range(CELLS), "made.one"):
            read.append(len(data.table("made.one", cell)))
    assert read == list(range(5))


def test_tables_of_several_cells_are_on_their_way_at_once(tables, monkeypatch):
    begun, begin = [], Store.begin
    monkeypatch.setattr(Store, "begin", lambda store, key: begun.append(key) or begin(store, key))
    data = seen(tables)
    for cell in data.ahead(range(CELLS), "made.one"):
        data.table("made.one", cell)
        assert len(begun) == min(CELLS, cell + 33)
    assert len(set(begun)) == CELLS
