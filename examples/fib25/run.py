"""Reconstruct the FIB-25 sample and score it: python examples/fib25/run.py DATA [FOLDER] [--network]

DATA holds `raw/` (125 PNG slices) and `bodies.h5` of the FlyEM neuroproof examples, training sample 2
(Takemura et al., PNAS 112:13711, 2015; CC BY).  FOLDER, fib25-run by default, takes all that is written.
The same can be typed by hand; each step prints the command it stands for.

With --network the boundary map is a trained network's, and the sections that it has not learned from are scored.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

VOXEL_SIZE = "10,10,10"
UNSEEN = "100:125,0:250,0:250"


def main() -> None:
    """Import, run, score."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--network"]
    if len(arguments) not in (1, 2):
        sys.exit(__doc__)
    data, folder = Path(arguments[0]), Path(arguments[1] if len(arguments) == 2 else "fib25-run")
    folder.mkdir(parents=True, exist_ok=True)
    image, bodies = folder / "image.zarr", folder / "bodies.zarr"
    if not image.exists():
        neurokube("import", data / "raw", image, "--voxel-size", VOXEL_SIZE)
    if not bodies.exists():
        neurokube("import", data / "bodies.h5", bodies, "--voxel-size", VOXEL_SIZE, "--labels")
    for file in Path(__file__).parent.glob("*.yaml"):
        shutil.copy(file, folder)
    if "--network" in sys.argv:
        neurokube("run", folder / "network.yaml")
        neurokube("run", folder / "unseen.yaml", "--region", UNSEEN)
        run = folder / f"unseen@{UNSEEN.replace(':', '-').replace(',', '_')}"
    else:
        neurokube("run", folder / "workflow.yaml")
        run = folder / "fib25"
    scores = {}
    for name in ("fragments", "segmentation"):
        # bodies under 1,000 voxels are noise in this truth
        command = ["evaluate", run / name / name, bodies, "--min-size", "1000", "--quiet"]
        neurokube(*command)
        scores[name] = json.loads(neurokube(*command, "--json", quiet=True))
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
