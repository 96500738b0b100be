"""From a boundary map to cells: speed beside python-elf, what levels cost, what priors bring, how it scales.

    python -m benchmarks.instances speed FOLDER [--rounds 3] [--shape 640]
    python -m benchmarks.instances levels FOLDER [--tile 64] [--map BOUNDARIES --truth BODIES]
    python -m benchmarks.instances priors FOLDER
    python -m benchmarks.instances scale FOLDER [--most 2048]

speed   Synthetic neuropil at 10 nm, its boundary map stored.  NeuroKube: the workflow from fragments to segmentation,
        reading from and writing to disk, two worker processes, the engine's start included.  python-elf: its
        distance-transform watershed (threshold, smoothing and size filter as its default, two threads), region
        adjacency graph, boundary features, costs and Kernighan-Lin multicut, from memory to memory.  Both with the bias
        of several that scores best on a smaller volume; VOI in bits against the truth.
levels  Hierarchical multicuts of several block sizes beside the global one of the same graph: energy, and VOI against
        the truth and against the global segmentation; on synthetic neuropil of 512^3 voxels, or on the map given
        (bodies under 1000 voxels left out).
priors  Synthetic neuropil whose boundary map misses a tenth of the membranes, five seeds: VOI without priors, with
        classes (axon, dendrite, glia) as a network of 84 % right voxels would tell them, and with the fragments'
        classes shuffled.
scale   The same from 16 Mvoxel on, doubled and doubled: seconds a Mvoxel of every step, peak memory, the last problem;
        FOLDER/scale.png, and what a teravoxel would take.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurokube.blocks import Box
from neurokube.engines import Engine, InProcess
from neurokube.engines.local import Local
from neurokube.evaluation import Contingency, evaluate_instances, variation_of_information
from neurokube.synthesis import Neuropil, synthesize
from neurokube.volumes import VolumeSpec, create, open_volume
from neurokube.workflow import Run, execute, parse_workflow
from neurokube.workflow.status import read_status

from .measure import machine, ratio

CHAIN = ("fragments", "graph", "multicut", "segmentation")
TILE = [128, 128, 128]
BIASES = (0.3, 0.4, 0.5, 0.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "levels", "priors", "scale"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", type=int, default=640)
    parser.add_argument("--most", type=int, default=2048, help="Mvoxel")
    parser.add_argument("--map", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--tile", type=int, default=64, help="levels: voxels, along each side")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.folder = options.folder.absolute()
    print(f"{machine()}; {options.part}", flush=True)
    {"speed": speed, "levels": levels, "priors": priors, "scale": scale}[options.part](options)


def run(folder: Path, name: str, stages: dict[str, Any], engine: Engine, **inputs: Path) -> Run:
    """Run a workflow, or go on with it."""
    document = {
        "name": name,
        "workspace": str(folder / "runs"),
        "inputs": {role: {"path": str(path)} for role, path in inputs.items()},
        "stages": stages,
    }
    planned = Run.planned(parse_workflow(document))
    execute(planned, engine, quiet=True)
    return planned


def tissue(folder: Path, shape: int, workers: int, **settings: Any) -> Path:
    """Return the folder of the boundary map and labels of synthetic neuropil, made before or now."""
    settings = {"microscope": "fib-sem", "boundary_gaps": 0.03, **settings}
    stage = {"shape": [shape] * 3, "voxel_size": [10, 10, 10], "write": ["boundaries", "labels"], "tissue": settings}
    return Path(run(folder, f"tissue-{shape}", {"synthesis": stage}, Local(workers)).url) / "synthesis"


def voi(prediction: Path, truth: Path, smallest: int = 0) -> tuple[float, float]:
    """Return VOI, split and merge in bits."""
    scores = evaluate_instances(open_volume(str(prediction)), open_volume(str(truth)), min_size=smallest, quiet=True)
    return scores.voi_split, scores.voi_merge


# speed


def speed(options: argparse.Namespace) -> None:
    source = tissue(options.folder, options.shape, options.workers)
    volume = open_volume(str(source / "boundaries"))
    boundaries, truth = volume.read(volume.spec.box), open_volume(str(source / "labels")).read(volume.spec.box)
    small = tissue(options.folder, 256, options.workers)
    look = open_volume(str(small / "boundaries"))
    values, cells = look.read(look.spec.box), open_volume(str(small / "labels")).read(look.spec.box)
    best = min(BIASES, key=lambda bias: sum(_score(_elf(values, bias, {}), cells)))
    mine = min(BIASES, key=lambda bias: sum(voi(_ours(options, small, bias)[1], small / "labels")))
    print(f"{boundaries.size / 1e6:.0f} Mvoxel; bias: elf {best}, neurokube {mine}")
    taken: dict[str, list[float]] = {"elf": [], "neurokube": []}
    steps: dict[str, dict[str, float]] = {"elf": {}, "neurokube": {}}
    found: NDArray[Any] | None = None
    for _ in range(options.rounds):
        began = time.perf_counter()
        found = _elf(boundaries, best, steps["elf"])
        taken["elf"].append(time.perf_counter() - began)
        seconds, place, steps["neurokube"] = _ours(options, source, mine)
        taken["neurokube"].append(seconds)
        print({name: round(values[-1], 2) for name, values in taken.items()}, flush=True)
    assert found is not None
    scores = {"elf": _score(found, truth), "neurokube": voi(place, source / "labels")}
    for name, values in taken.items():
        rate = boundaries.size / median(values) / 1e6
        print(
            f"{name}: {rate:.2f} Mvoxel/s, VOI {scores[name][0]:.3f} + {scores[name][1]:.3f}; seconds of work by step"
        )
        for step, seconds in steps[name].items():
            print(f"    {step:28} {seconds:8.2f} s  {seconds / boundaries.size * 1e9:7.1f} ns/voxel")
    print(f"neurokube / elf in speed: {ratio(taken['elf'], taken['neurokube']):.2f}")


def _ours(options: argparse.Namespace, source: Path, bias: float) -> tuple[float, Path, dict[str, float]]:
    """Return seconds, the segmentation, and the seconds of work of every step."""
    name = "speed"
    shutil.rmtree(options.folder / "runs" / name, ignore_errors=True)
    stages: dict[str, Any] = {stage: {} for stage in CHAIN}
    stages["fragments"] = {"tile": TILE}
    stages["multicut"] = {"bias": bias}
    began = time.perf_counter()
    finished = run(options.folder, name, stages, Local(options.workers), boundaries=source / "boundaries")
    seconds = time.perf_counter() - began
    work = {step: state["seconds"] for step, state in read_status(finished)["steps"].items()}
    return seconds, Path(finished.url) / "segmentation" / "segmentation", work


def _elf(boundaries: NDArray[np.uint8], bias: float, steps: dict[str, float]) -> NDArray[Any]:
    from elf.segmentation import features, multicut
    from elf.segmentation.watershed import distance_transform_watershed

    def timed(name: str, compute: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = compute()
        steps[name] = time.perf_counter() - began
        return result

    floats = boundaries.astype(np.float32) / np.float32(255)
    fragments, _ = timed("watershed", lambda: distance_transform_watershed(floats, threshold=0.5, sigma_seeds=1.6))
    graph = timed("graph", lambda: features.compute_rag(fragments, n_threads=2))
    values = timed("features", lambda: features.compute_boundary_mean_and_length(graph, fragments, floats, n_threads=2))
    costs = multicut.transform_probabilities_to_costs(values[:, 0], beta=bias, edge_sizes=values[:, -1])
    nodes = timed("multicut", lambda: multicut.multicut_kernighan_lin(graph, costs))
    project = features.project_node_labels_to_pixels
    return np.asarray(timed("projection", lambda: project(graph, fragments, nodes, n_threads=2)))


def _score(labels: NDArray[Any], truth: NDArray[np.uint64]) -> tuple[float, float]:
    table = Contingency.of(np.ascontiguousarray(labels, np.uint64), truth)
    return variation_of_information(table)


# levels


def levels(options: argparse.Namespace) -> None:
    if options.map is None:
        source = tissue(options.folder, 512, options.workers)
        boundaries, truth, smallest = source / "boundaries", source / "labels", 0
    else:
        boundaries, truth, smallest = options.map, options.truth, 1000
    blocks = [block for block in (0, 64, 96, 128, 192, 256) if block % options.tile == 0]
    stages: dict[str, Any] = {"fragments": {"tile": [options.tile] * 3}, "graph": {}}
    cuts = [(bias, block) for bias in (0.2, 0.4, 0.6) for block in blocks]
    for bias, block in cuts:
        size = {"levels": 0} if block == 0 else {"first_block": [block] * 3}
        stages[f"multicut-{bias}-{block}"] = {"stage": "multicut", "bias": bias, "smallest": smallest, **size}
        stages[f"segmentation-{bias}-{block}"] = {"stage": "segmentation", "multicut": f"multicut-{bias}-{block}"}
    stages = {name.replace("0.", "0"): _renamed(stage) for name, stage in stages.items()}
    name = "levels" if options.map is None else "levels-map"
    folder = Path(run(options.folder, name, stages, Local(options.workers), boundaries=boundaries).url)
    print(
        "| bias | block | levels | energy | beside global | VOI, split + merge | difference | to global | last nodes |"
    )
    for bias, block in cuts:
        tag = f"{bias}-{block}".replace("0.", "0")
        summary = json.loads((folder / f"multicut-{tag}" / "summary.json").read_text())
        place = folder / f"segmentation-{tag}" / "segmentation"
        score = voi(place, truth, smallest)
        if block == 0:
            whole, at, global_score = summary, place, sum(score)
        worse = 100 * (summary["energy"] - whole["energy"]) / abs(whole["energy"])
        count = len(list((folder / f"multicut-{tag}").glob("joined-*")))
        print(
            f"| {bias} | {block or 'global'} | {count} | {summary['energy']:.1f} | {worse:+.4f} % | {score[0]:.3f} + "
            f"{score[1]:.3f} | {sum(score) - global_score:+.4f} | {sum(voi(place, at)):.4f} | {summary['nodes']} |",
            flush=True,
        )


def _renamed(stage: dict[str, Any]) -> dict[str, Any]:
    return {key: value.replace("0.", "0") if key == "multicut" else value for key, value in stage.items()}


# priors


def priors(options: argparse.Namespace) -> None:
    shape, voxel_size, tile = (32, 640, 640), (40.0, 8.0, 8.0), (16, 320, 320)
    biases = (0.5, 0.55, 0.6, 0.65)
    gains, harms = [], []
    print(
        "| seed | " + " | ".join(f"{how}, bias {b}" for how in ("plain", "priors", "shuffled") for b in biases) + " |"
    )
    for seed in range(1, 6):
        folder = options.folder / f"priors-{seed}"
        folder.mkdir(exist_ok=True)
        neuropil = Neuropil(seed=seed, boundary_gaps=0.1)
        found = synthesize(neuropil, voxel_size, Box.of(shape), ("boundaries", "labels", "classes"))
        maps = {name: _predicted(found["classes"], k, seed) for k, name in enumerate(("axon", "dendrite", "glia"), 1)}
        inputs = {"boundaries": found["boundaries"], "labels": found["labels"], **maps}
        paths = {name: _stored(folder / f"{name}.zarr", values, voxel_size, tile) for name, values in inputs.items()}
        cut = {"fragments": {"tile": list(tile)}, "graph": {}}
        fragments = run(folder, "fragments", cut, InProcess(), boundaries=paths["boundaries"])
        ids = open_volume(f"{fragments.url}/fragments/fragments").read(Box.of(shape))
        for name, values in _shuffled(ids, maps, seed).items():
            paths[f"shuffled-{name}"] = _stored(folder / f"shuffled-{name}.zarr", values, voxel_size, tile)
        scores: dict[str, list[float]] = {}
        for how, prefix in (("plain", None), ("priors", ""), ("shuffled", "shuffled-")):
            stages: dict[str, Any] = dict(cut)
            for bias in biases:
                tag = round(100 * bias)
                more: dict[str, Any] = {}
                if prefix is not None:
                    channels = {name: prefix + name for name in maps}
                    classes = {"channels": channels, "repel": 3}
                    stages[f"lifted-{tag}"] = {"stage": "lifted", "priors": {"classes": classes}}
                    more = {"lifted": f"lifted-{tag}"}
                stages[f"multicut-{tag}"] = {"stage": "multicut", "bias": bias, "smallest": 100, **more}
                stages[f"segmentation-{tag}"] = {"stage": "segmentation", "multicut": f"multicut-{tag}"}
            done = run(folder, how, stages, InProcess(), **{k: v for k, v in paths.items() if k != "labels"})
            places = [Path(done.url) / f"segmentation-{round(100 * b)}" / "segmentation" for b in biases]
            scores[how] = [sum(voi(place, paths["labels"])) for place in places]
        print(f"| {seed} | " + " | ".join(f"{v:.3f}" for values in scores.values() for v in values) + " |", flush=True)
        # each is taken at the bias that is best without priors
        best = scores["plain"].index(min(scores["plain"]))
        gains.append(scores["plain"][best] - scores["priors"][best])
        harms.append(scores["shuffled"][best] / scores["plain"][best] - 1)
    print(f"priors lower VOI by {mean(gains):.3f} (standard deviation {stdev(gains):.3f}, least {min(gains):.3f})")
    print(f"shuffled priors raise it by {100 * mean(harms):.2f} % (most {100 * max(harms):.2f} %)")


def _stored(path: Path, values: NDArray[Any], voxel_size: tuple[float, float, float], tile: Any) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    spec = VolumeSpec(values.shape, values.dtype.name, voxel_size, kind="image" if values.itemsize == 1 else "labels")
    create(str(path), spec, shard=tile).write(spec.box, values)
    return path


def _predicted(classes: NDArray[np.uint8], kind: int, seed: int) -> NDArray[np.uint8]:
    """Return the probability of a class as a network tells it that is right in 84 % of the voxels, in patches."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(
        np.random.default_rng([seed, kind]).normal(size=classes.shape).astype(np.float32), (1, 8, 8)
    )
    value = np.where(classes == kind, 1.0, -1.0) + noise / noise.std()
    return np.rint(255 / (1 + np.exp(-2 * value))).astype(np.uint8)


def _shuffled(ids: NDArray[np.uint64], maps: dict[str, NDArray[np.uint8]], seed: int) -> dict[str, NDArray[np.uint8]]:
    """Return maps in which each fragment has the mean values of another."""
    _, where, count = np.unique(ids, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(count))
    means = {name: np.bincount(where.ravel(), values.ravel()) / count for name, values in maps.items()}
    return {name: np.rint(mean[order])[where].reshape(ids.shape).astype(np.uint8) for name, mean in means.items()}


# scale


def scale(options: argparse.Namespace) -> None:
    rows = []
    for shape in _shapes(options.most):
        stages: dict[str, Any] = {stage: {} for stage in CHAIN}
        settings = {"microscope": "fib-sem", "boundary_gaps": 0.03}
        synthesis = {"shape": shape, "voxel_size": [10, 10, 10], "write": ["boundaries"], "tissue": settings}
        stages["fragments"] = {"tile": TILE, "boundaries": "synthesis.boundaries"}
        stages["graph"] = {"boundaries": "synthesis.boundaries"}
        stages["multicut"] = {"bias": 0.4}
        name = "scale-" + "x".join(map(str, shape))
        first = run(options.folder, name, {"synthesis": synthesis}, Local(options.workers))
        began = time.perf_counter()
        finished = run(options.folder, name, {"synthesis": synthesis, **stages}, Local(options.workers))
        seconds = time.perf_counter() - began
        steps = {k: v for k, v in read_status(finished)["steps"].items() if not k.startswith("synthesis")}
        summary = json.loads(Path(finished.url, "multicut", "summary.json").read_text())
        files = [f for stage in CHAIN for f in Path(finished.url, stage).rglob("*") if f.is_file()]
        row = {
            "mvoxel": np.prod(shape) / 1e6,
            "seconds": seconds,
            "steps": {k: v["seconds"] for k, v in steps.items()},
            "memory": {k: v["peak_memory"] / 2**20 for k, v in steps.items()},
            "summary": summary,
            "bytes": sum(f.stat().st_size for f in files),
            "objects": len(files),
        }
        rows.append(row)
        (options.folder / "scale.json").write_text(json.dumps(rows, indent=2))
        print(
            f"{row['mvoxel']:.0f} Mvoxel: {seconds / row['mvoxel']:.4f} s/Mvoxel of wall, "
            f"{sum(row['steps'].values()) / row['mvoxel']:.4f} of work; last problem {summary['nodes']} "
            f"nodes, {row['steps']['multicut/last']:.2f} s, {row['memory']['multicut/last']:.0f} MiB; most of a worker "
            f"elsewhere {max(v for k, v in row['memory'].items() if k != 'multicut/last'):.0f} MiB; "
            f"{row['bytes'] / row['mvoxel'] / 1e6:.3f} bytes a voxel, {row['objects'] / row['mvoxel']:.1f} objects "
            "a Mvoxel",
            flush=True,
        )
        shutil.rmtree(first.url)
    _tabulate(rows)
    _plot(rows, options.folder / "scale.png")


def _shapes(most: int) -> Iterator[list[int]]:
    """Yield shapes of 16 Mvoxel and more, each twice the one before, up to `most` Mvoxel."""
    shape, axis = [256, 256, 256], 2
    while np.prod(shape) <= most * 2**20:
        yield list(shape)
        shape[axis] *= 2
        axis = (axis - 1) % 3


def _tabulate(rows: list[dict[str, Any]]) -> None:
    """Print seconds a Mvoxel by step, and what a teravoxel would take by the fits."""
    print("| step | " + " | ".join(f"{row['mvoxel']:.0f}" for row in rows) + " | (ms of work a Mvoxel)")
    for step in rows[-1]["steps"]:
        cells = [f"{1e3 * row['steps'].get(step, 0) / row['mvoxel']:.2f}" for row in rows]
        memory = [f"{row['memory'].get(step, 0):.0f}" for row in rows]
        print(f"| {step} | {' | '.join(cells)} | MiB: {', '.join(memory)}")
    size = np.array([row["mvoxel"] for row in rows])
    nodes = np.array([row["summary"]["nodes"] for row in rows])
    last = np.array([row["steps"]["multicut/last"] for row in rows])
    work = np.array([sum(row["steps"].values()) - row["steps"]["multicut/last"] for row in rows])
    large = slice(-4, None)
    memory = np.array([row["memory"]["multicut/last"] for row in rows])
    per_node = np.polyfit(np.log(nodes[large]), np.log(last[large]), 1)
    held = np.polyfit(nodes[large], memory[large], 1)
    tera = 1e6
    nodes_tera = nodes[-1] / size[-1] * tera
    hours_tera = np.exp(np.polyval(per_node, np.log(nodes_tera))) / 3600
    print(
        f"a teravoxel: {work[-1] / size[-1] * tera / 3600:.0f} core hours before the last problem, "
        f"which has {nodes_tera / 1e6:.1f} million nodes, takes {hours_tera:.1f} h "
        f"(time grows as nodes to the power of {per_node[0]:.2f}) and {np.polyval(held, nodes_tera) / 1024:.0f} GiB; "
        f"{rows[-1]['bytes'] / size[-1] / 1e6:.2f} TB, {rows[-1]['objects'] / size[-1]:.1f} million objects"
    )


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw time a voxel, peak memory of workers, and time and memory of the last solution, over the size."""
    from matplotlib.figure import Figure

    size = [row["mvoxel"] for row in rows]
    nodes = [row["summary"]["nodes"] for row in rows]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    time_axes, memory_axes, last_axes = figure.subplots(1, 3)
    time_axes.plot(size, [row["seconds"] / row["mvoxel"] for row in rows], "o-", label="wall, two workers")
    work = [(sum(row["steps"].values()) - row["steps"]["multicut/last"]) / row["mvoxel"] for row in rows]
    time_axes.plot(size, work, "s-", label="work of all steps but the last solution")
    time_axes.set(xscale="log", ylim=(0, None), xlabel="Mvoxel", ylabel="s a Mvoxel")
    for step in ("fragments/fragments", "graph/edges", "multicut/level-1", "segmentation/segmentation"):
        memory_axes.plot(size, [row["memory"].get(step, np.nan) for row in rows], "o-", label=step)
    memory_axes.set(xscale="log", ylim=(0, None), xlabel="Mvoxel", ylabel="peak memory of a worker, MiB")
    last_axes.plot(nodes, [row["steps"]["multicut/last"] for row in rows], "o-", label="seconds")
    last_axes.plot(nodes, [row["memory"]["multicut/last"] / 1024 for row in rows], "s-", label="peak memory, GiB")
    last_axes.set(xscale="log", yscale="log", xlabel="nodes of the last problem")
    for axes in (time_axes, memory_axes, last_axes):
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
