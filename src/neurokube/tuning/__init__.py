"""Tuning: settings of the watershed and of the multicut that fit an annotated volume, by a score.

ranges          which settings vary, and between what
cutouts         where truth lies in the image
reconstruction  a cut-out segmented with some settings and scored
study           trials that were made, and what to try next
tuner           one trial after the other
report          tables, plot, and the workflow with the best settings
"""

from .report import as_dict, print_tuning, tuned_workflow, write_tuning
from .tuner import SCORES, Request, Tuning, tune

__all__ = ["SCORES", "Request", "Tuning", "as_dict", "print_tuning", "tune", "tuned_workflow", "write_tuning"]
