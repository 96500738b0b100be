"""Measurements of NeuroKube beside its peers, each a program: `python -m benchmarks.NAME`; results in RESULTS.md."""
