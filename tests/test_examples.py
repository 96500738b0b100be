"""The examples, run as their pages say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "fib25"


@pytest.mark.skipif(not DATA.exists(), reason="the FIB-25 sample is not in ../shared/data")
def test_fib25_is_reconstructed_better_than_its_own_watershed_fragments(tmp_path):
    command = [sys.executable, ROOT / "examples" / "fib25" / "run.py", DATA, tmp_path / "run"]
    subprocess.run(command, check=True, capture_output=True)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    # the fragments that come with the data: 2.38 + 0.33 bits
    assert scores["segmentation"]["voi"] < 2.71
    assert scores["segmentation"]["floor"]["voi"] < 0.05
