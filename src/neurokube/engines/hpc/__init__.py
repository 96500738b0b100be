"""Batch systems, Slurm, LSF and PBS: profiles of their jobs, and the engine that runs batches in them."""

from .engine import Hpc
from .profile import JobProfile, load_job_profile

__all__ = ["Hpc", "JobProfile", "load_job_profile"]
