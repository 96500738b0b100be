"""Synthetic neuropil with its ground truth, of any size, the same however it is cut into blocks."""

from .neuropil import Neuropil, synthesize

__all__ = ["Neuropil", "synthesize"]
