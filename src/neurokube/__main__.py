"""`python -m neurokube` is `neurokube`.

A pod's `work RUN STEP --job JOB` goes by a short way: there may be hundreds of thousands of them, and what reads
command lines for people takes a third of the time that one needs to start.  It also leaves without taking apart what
it built: that would take as long as all the rest that it does of its own.
"""

import os
import signal
import sys


def main() -> None:
    """Run the command line."""
    match sys.argv[1:]:
        case ["work", run, step, "--job", job] if not run.startswith("-"):
            # the first process of a container does not end by a signal that it has no handler for
            signal.signal(signal.SIGTERM, lambda *_: os._exit(85))
            from .workflow.pod import main as work

            code = work(run, step, job)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        case _:
            from .cli import main as everything

            everything()


if __name__ == "__main__":
    main()
