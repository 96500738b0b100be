"""Batch systems of computing centres, Slurm, LSF and PBS: profiles of jobs, and the engine that has jobs run batches."""

from .engine import Hpc
from .profile import JobProfile, load_job_profile

__all__ = ["Hpc", "JobProfile", "load_job_profile"]
