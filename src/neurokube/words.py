"""Words for what a person reads: numbers with their nouns, lists that are not too long."""

from collections.abc import Iterable, Sequence


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun, as `1 block` or `2,000 blocks`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def named(one: str, names: Sequence[int | str]) -> str:
    """Return a noun with what it names, as `edit 3` or `edits 3, 4`."""
    return f"{one if len(names) == 1 else f'{one}s'} {described(names)}"


def described(names: Iterable[int | str], most: int = 4) -> str:
    """Return ids or names for a person to read, the first few of them."""
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def human_bytes(count: float) -> str:
    """Return a number of bytes for a person to read."""
    units = ["B", "kB", "MB", "GB"]
    while count >= 1000 and units:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0] if units else 'TB'}"


def human_time(seconds: float) -> str:
    """Return seconds for a person to read."""
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds >= 1 else f"{round(seconds, 3):g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.4g} h"
