"""Reconstruct the FIB-25 sample and score it: python examples/fib25/run.py DATA [FOLDER]

DATA holds `raw/` (125 PNG slices) and `bodies.h5` of the FlyEM neuroproof examples, training sample 2
(Takemura et al., PNAS 112:13711, 2015; CC BY).  FOLDER, fib25-run by default, takes all that is written.
The same can be typed by hand; each step prints the command it stands for.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

VOXEL_SIZE = "10,10,10"


def main() -> None:
    """Import, run, score."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    data, folder = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) == 3 else "fib25-run")
    folder.mkdir(parents=True, exist_ok=True)
    image, bodies = folder / "image.zarr", folder / "bodies.zarr"
    if not image.exists():
        neurokube("import", data / "raw", image, "--voxel-size", VOXEL_SIZE)
    if not bodies.exists():
        neurokube("import", data / "bodies.h5", bodies, "--voxel-size", VOXEL_SIZE, "--labels")
    workflow = folder / "workflow.yaml"
    shutil.copy(Path(__file__).with_name("workflow.yaml"), workflow)
    neurokube("run", workflow)
    run = folder / "fib25"
    scores = {}
    for name in ("fragments", "segmentation"):
        volume = run / name / name
        # bodies under 1,000 voxels are noise in this truth
        neurokube("evaluate", volume, bodies, "--min-size", "1000", "--quiet")
        command = ["evaluate", volume, bodies, "--min-size", "1000", "--quiet", "--json"]
        scores[name] = json.loads(neurokube(*command, quiet=True))
    (folder / "scores.json").write_text(json.dumps(scores, indent=2))
    print(f"scores: {folder / 'scores.json'}; look at it with: neurokube view {run}")


def neurokube(*arguments: object, quiet: bool = False) -> str:
    """Run a neurokube command; return what it printed where it is not shown."""
    command = [sys.executable, "-m", "neurokube", *map(str, arguments)]
    if not quiet:
        print("\n$ neurokube", *arguments, flush=True)
    result = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE if quiet else None)
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout or ""


if __name__ == "__main__":
    main()
