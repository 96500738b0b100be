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
