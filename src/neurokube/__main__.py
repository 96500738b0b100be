"""`python -m neurokube` is `neurokube`.

A pod's `work RUN STEP --job JOB` goes by a short way: there may be hundreds of thousands of them, and what reads
command lines for people takes a third of the time that one needs to start.
"""

import sys


def main() -> None:
    """Run the command line."""
    match sys.argv[1:]:
        case ["work", run, step, "--job", job] if not run.startswith("-"):
            from .workflow.pod import main as work

            work(run, step, job)
        case _:
            from .cli import main as everything

            everything()


if __name__ == "__main__":
    main()
