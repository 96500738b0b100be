import errno

import pytest
import tensorstore as ts

from neurokube import errors
from neurokube.errors import NeuroKubeError, surroundings


def test_every_error_has_the_exit_code_that_callers_know():
    kinds = (
        errors.UsageError,
        errors.DataError,
        errors.TryAgainError,
        errors.ConfigurationError,
        errors.Drained,
        NeuroKubeError,
    )
    assert [kind.exit_code for kind in kinds] == [64, 65, 75, 78, 85, 1]
    assert all(issubclass(kind, NeuroKubeError) for kind in kinds)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the folder is read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_trouble_with_the_storage_says_where_and_what_to_do(code, words):
    for error in (OSError(code, "text"), ValueError(f"INTERNAL: text [os_error_code='{code}']")):
        shown = surroundings(error, "/a/folder")
        assert shown.exit_code == 75
        assert str(shown).startswith(f"/a/folder: {words}")


@pytest.mark.parametrize("error", [ValueError("a wrong value"), OSError(errno.ENOENT, "no such file"), KeyError("key")])
def test_other_trouble_is_not_blamed_on_the_storage(error):
    assert surroundings(error, "/a/folder") is None


def test_the_way_tensorstore_reports_an_errno_is_understood(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    store = ts.KvStore.open({"driver": "file", "path": f"{tmp_path}/file/"}).result()
    with pytest.raises(ValueError, match=rf"os_error_code='{errno.ENOTDIR}'"):
        store.write("key", b"").result()
