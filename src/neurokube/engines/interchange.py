"""Parsl's interchange, made to end with the process that started it.

    python -m neurokube.engines.interchange DRIVER_PID FOLDER

Parsl's own goes on for ever when its driver is killed.  This one leaves within a second, removing the
driver's temporary folder; the workers leave when they miss it.
"""

import os
import runpy
import shutil
import sys
import threading
import time


def _leave_with(driver: int, folder: str) -> None:
    while os.getppid() == driver:
        time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_leave_with, args=(int(sys.argv[1]), sys.argv[2]), daemon=True).start()
    runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__")
