"""What this machine can do."""

import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .machine import cores

_PACKAGES = ("bioimage-cpp", "tensorstore", "parsl", "numpy", "neuroglancer", "torch", "openvino", "lightning")


def examine(folder: str = ".") -> dict[str, Any]:
    """Return what was found: system, cores, memory, disk, graphics, ports, packages; and what to mend."""
    import psutil

    from . import __version__

    findings: dict[str, Any] = {
        "neurokube": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_available_bytes": psutil.virtual_memory().available,
        "disk_free_bytes": shutil.disk_usage(folder).free,
        "disk_write_megabytes_per_second": _disk_rate(folder),
        "loopback_port": _can_listen(),
        "browser": next((b for b in ("chromium", "google-chrome", "firefox", "open") if shutil.which(b)), None),
        "packages": {name: _version(name) for name in _PACKAGES},
        "gpus": _gpus(),
        "bfloat16": _bfloat16(),
    }
    findings["advice"] = advise(findings)
    return findings


def print_findings(findings: dict[str, Any]) -> None:
    """Print what was found as a table, and the advice."""
    from rich.table import Table

    from .progress import page
    from .words import human_bytes

    rate = findings["disk_write_megabytes_per_second"]
    rows = {
        "neurokube": f"{findings['neurokube']} on Python {findings['python']}",
        "system": findings["system"],
        "cores": str(findings["cores"]),
        "memory": f"{human_bytes(findings['memory_bytes'])}, "
        f"{human_bytes(findings['memory_available_bytes'])} available",
        "disk here": f"{human_bytes(findings['disk_free_bytes'])} free, "
        + (f"writes {rate:.0f} MB/s" if rate else "cannot be written"),
        "GPU": ", ".join(findings["gpus"]) or "none found",
        "bfloat16 instructions": {True: "yes", False: "no", None: "cannot tell"}[findings["bfloat16"]],
        "loopback port": "yes" if findings["loopback_port"] else "no",
        "browser": findings["browser"] or "none found",
        **{name: found or "not installed" for name, found in findings["packages"].items()},
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    console = page(markup=False, highlight=False)
    console.print(table)
    for line in findings["advice"] or ["All that this version needs is here."]:
        console.print(line)


def advise(findings: dict[str, Any]) -> list[str]:
    """Return what to mend, a line each."""
    lines = []
    if not findings["loopback_port"]:
        lines.append("No port on 127.0.0.1 can be opened: 'neurokube run' needs one; use --workers 0, or mend it.")
    if findings["disk_write_megabytes_per_second"] is None:
        lines.append("This folder cannot be written: work in another.")
    if findings["disk_free_bytes"] < 5e9:
        lines.append("Less than 5 GB of disk are free here: the demo needs 1 GB, a volume about 12 bytes a voxel.")
    if findings["memory_available_bytes"] < 1.5e9 * findings["cores"]:
        lines.append("Less than 1.5 GB of memory for each core: give fewer --workers.")
    if findings["packages"]["neuroglancer"] is None:
        lines.append("To look at results: pip install 'neurokube[view]'.")
    return lines


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _disk_rate(folder: str) -> float | None:
    data = os.urandom(32 << 20)
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            started = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return round(len(data) / 1e6 / (time.perf_counter() - started), 1)
    except OSError:
        return None


def _can_listen() -> bool:
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
        return True
    except OSError:
        return False


def _gpus() -> list[str]:
    """Return names of the GPUs that the driver's own tool, or torch on a Mac, reports."""
    import subprocess

    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        return [line.strip() for line in result.stdout.splitlines() if result.returncode == 0 and line.strip()]
    if sys.platform == "darwin" and platform.machine() == "arm64" and find_spec("torch"):
        return ["Apple GPU (Metal)"]
    return []


def _bfloat16() -> bool | None:
    """Return whether the processor computes in bfloat16; None where the system does not say."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return None
    flags = set(info.read_text().split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
