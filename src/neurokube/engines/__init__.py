"""Engines: where batches of blocks run.  An engine never knows what it runs."""

from .base import Batch, Engine, InProcess, Outcome, Report
from .observer import Observer

__all__ = ["Batch", "Engine", "InProcess", "Observer", "Outcome", "Report"]
