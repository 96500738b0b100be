"""A lifeline: a process that ends when the one it works for is gone, however that ended."""

import os
import shutil
import threading
import time

import psutil


def leave_with(pid: int, folder: str | None = None) -> None:
    """End this process soon after the process `pid` has ended; remove `folder` on the way out.

    Watched from a thread, so it holds while the main thread computes.
    """
    try:
        watched = psutil.Process(pid)
    except psutil.NoSuchProcess:
        os._exit(1)
    threading.Thread(target=_watch, args=(watched, folder), daemon=True).start()


def _watch(watched: psutil.Process, folder: str | None) -> None:
    while _lives(watched):
        time.sleep(0.2)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def lives(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return _lives(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False
