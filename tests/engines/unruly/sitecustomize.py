"""What makes workers unruly: Python imports this file by itself where PYTHONPATH names its folder.

`mishaps.json` beside it says what befalls which block: {"<stage>/<step> <block>": {"do": ..., "times": ...}}, the
block "*" being any.  Done at most so many times over all pods, which claim their turn by making a file.

Where there is a folder `begun`, each process writes there which blocks it begins, and when it began itself.
"""

import importlib.util
import json
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
BEGAN = time.time()
WORKER = "neurokube.workflow.worker"


class Unruly:
    """Changes the worker when it is imported, and not before: start-up has to be as it is."""

    def find_spec(self, name, path=None, target=None):
        if name != WORKER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            one_block = module._one_block

            def unruly(run, step, data, block, writer):
                compute = step.step.compute

                def compute_unruly(box, data):
                    befall(step.name, block)
                    compute(box, data)

                changed = replace(step, step=replace(step.step, compute=compute_unruly))
                return one_block(run, changed, data, block, writer)

            module._one_block = unruly

        spec.loader.exec_module = execute_and_change
        return spec


def befall(step, block):
    if (HERE / "begun").is_dir():
        with (HERE / "begun" / f"{socket.gethostname()}-{os.getpid()}").open("a") as file:
            file.write(f"{BEGAN} {step} {block}\n")
    told = json.loads((HERE / "mishaps.json").read_text())
    for key in (f"{step} {block}", f"{step} *"):
        if key in told and turn(key, told[key].get("times", 10**6)):
            do(**told[key])


def turn(key, times):
    for number in range(times):
        try:
            (HERE / f"{key.replace('/', '-')} {number}").open("x").close()
            return True
        except FileExistsError:
            continue
    return False


def do(do, seconds=0.0, code=128 + signal.SIGKILL, megabytes=0, times=0):
    match do:
        case "wait":
            time.sleep(seconds)
        case "exit":
            os._exit(code)
        case "memory":
            len(b"x" * (megabytes * 2**20))
        case "disk":
            file = Path("/tmp/filler")
            file.write_bytes(b"x" * megabytes * 2**20)
            time.sleep(seconds)
            file.unlink()
        case "raise":
            raise ValueError("poisoned")


sys.meta_path.insert(0, Unruly())
