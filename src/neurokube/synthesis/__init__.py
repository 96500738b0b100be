"""Synthetic neuropil with its ground truth, of any size, the same however it is cut into blocks."""

from .neuropil import ARRAYS, BASIC, Array, SynapseTable, cell_class, dtype_of, synapse_table, synthesize
from .settings import Neuropil

__all__ = [
    "ARRAYS",
    "BASIC",
    "Array",
    "Neuropil",
    "SynapseTable",
    "cell_class",
    "dtype_of",
    "synapse_table",
    "synthesize",
]
