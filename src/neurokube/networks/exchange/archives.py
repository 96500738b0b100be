"""Zip files from strangers."""

import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from ...errors import DataError, surroundings

_MOST_BYTES = 16 * 2**30


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """Yield a folder as it is, or a zip's content in a temporary one; a single folder inside is stepped into.

    Raises:
        DataError: where the file is no zip, damaged, or would write outside the folder.
    """
    if source.is_dir():
        yield source
        return
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            _extract(source, folder)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{source}: no zip that can be read ({error}); get it again") from None
        except OSError as error:
            raise surroundings(error, str(folder)) or DataError(f"{source}: {error.strerror}; get it again") from None
        inside = list(folder.iterdir())
        yield inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def inside(folder: Path, name: str, source: str) -> Path:
    """Return a file that a description names.

    Raises:
        DataError: where it is on the web, missing, or outside the folder.
    """
    if "://" in name:
        raise DataError(f"{source}: {name} is not in the package; download the whole package")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{source}: {name} is outside the package; this is no package to trust")
    if not path.is_file():
        raise DataError(f"{source}: {name} is missing; get the package again")
    return path


def _extract(source: Path, folder: Path) -> None:
    with zipfile.ZipFile(source) as archive:
        for entry in archive.infolist():
            path = PurePosixPath(entry.filename.replace("\\", "/"))
            link = stat.S_ISLNK(entry.external_attr >> 16)
            if link or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise DataError(f"{source}: '{entry.filename}' leads out of the zip; this is no package to trust")
        if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
            raise DataError(f"{source}: unpacks to more than {_MOST_BYTES >> 30} GiB; this is no model")
        archive.extractall(folder)
