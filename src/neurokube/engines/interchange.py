"""Parsl's interchange, made to end with the process that started it.

    python -m neurokube.engines.interchange DRIVER_PID FOLDER

Parsl's own goes on for ever when its driver is killed.
"""

import runpy
import sys

from .lifeline import leave_with

if __name__ == "__main__":
    leave_with(int(sys.argv[1]), sys.argv[2])
    runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__")
