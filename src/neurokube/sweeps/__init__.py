"""Trainings in pods of a cluster; and sweeps: trainings with other settings each, to find those that score best.

remote    a training in a pod
alone     one process a training
spec      the sweep file, and which settings of a training vary
trials    the trials in a folder: what was proposed, and what came of it
trial     one trial, as a process or a pod makes it
local     trials as processes of this machine
cluster   trials as indexes of a Job
sweeper   one round of trials after the other
report    table, plot, and the best model
"""

from .report import as_dict, print_sweep, write_sweep
from .spec import Sweep, load_sweep
from .sweeper import Swept, sweep
from .trial import make_trial, trial_of

__all__ = ["Sweep", "Swept", "as_dict", "load_sweep", "make_trial", "print_sweep", "sweep", "trial_of", "write_sweep"]
