"""Engines: where batches of blocks run.  An engine never knows what it runs."""

from .base import Batch, Engine, InProcess, Outcome, Report

__all__ = ["Batch", "Engine", "InProcess", "Outcome", "Report"]
