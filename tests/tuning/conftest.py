import pytest
from plots import Plots, write_all


@pytest.fixture(scope="session")
def plots(tmp_path_factory):
    """Tissue with truth, in which settings are tuned."""
    folder = tmp_path_factory.mktemp("tuning")
    write_all(folder)
    return Plots(folder)


@pytest.fixture(scope="session")
def tuning(plots):
    """A tuning with all that is usual and a hold-out."""
    from plots import HELD_OUT

    return plots.tuned(output="usual", validation=[HELD_OUT])
