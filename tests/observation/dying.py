"""A worker function that kills its process."""

import os


def dies(run_url, step_name, batch, stop):
    os._exit(9)
