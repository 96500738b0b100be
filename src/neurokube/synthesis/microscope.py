"""An electron microscope: the grey values in which sections of tissue appear."""

import numpy as np
from numpy.typing import NDArray

from .neurites import AXON, DENDRITE, GLIA
from .randomness import SmoothNoise, hashed, normal, stream, uniform
from .sections import EDGE, Plane, Row, Sections

Grey = NDArray[np.float32]

_CYTOSOL, _MEMBRANE, _CLEFT = 174.0, 54.0, 150.0
_RIM, _VESICLE, _DENSE, _THIN, _TUBULE, _NUCLEUS = 72.0, 74.0, 34.0, 82.0, 112.0, 148.0
_ENVELOPE = (6.0, 32.0)  # depth (nm) of the two membranes of a nucleus
_CRISTA = 42.0  # nm from crista to crista
_DEFECTS = ("fold", "dirt", "dark", "missing")


class Microscope:
    """Takes pictures of the sections of one tile."""

    def __init__(self, sections: Sections) -> None:
        self._sections = sections
        config = self._config = sections.config
        self._seen = config.seen_by
        self._pixel = np.float32(max(sections.voxel_size[1:]))
        half = self._seen.blur
        self._blur = np.array([*half[:0:-1], *half], np.float32) / (2 * sum(half) - half[0])
        self._grain = SmoothNoise(stream(config.seed, "grain"), (45.0,) * 3)
        self._specks = SmoothNoise(stream(config.seed, "specks"), (20.0,) * 3)
        self._chromatin = SmoothNoise(stream(config.seed, "chromatin"), (150.0,) * 3)
        thickness = sections.voxel_size[0]
        self._light = [SmoothNoise(stream(config.seed, f"light {n}"), (thickness, 2500.0, 2500.0)) for n in range(2)]
        self._curtains = SmoothNoise(stream(config.seed, "curtains"), (4 * thickness, 20_000.0, 30.0))
        self._stains = SmoothNoise(stream(config.seed, "stains"), (thickness, 700.0, 700.0))
        self._look_of_cells()
        self._look_of_mitochondria()

    def _look_of_cells(self) -> None:
        seed, cells, kinds = self._config.seed, self._sections.tissue.cells, self._sections.classes
        # dendrites are clear, axons denser, with a finer grain of filaments (Peters, Palay and Webster, "The fine
        # structure of the nervous system", 1991)
        shade = 7 * normal(stream(seed, "shade"), cells)
        shade -= np.where(uniform(stream(seed, "dark"), cells) < 0.06, 28, 0)
        shade += np.select([kinds == GLIA, kinds == DENDRITE, kinds == AXON], [-40, 14, -11], 0)
        self._shade = shade.astype(np.float32)
        # from clear to full of ribosomes
        texture = 1.2 * uniform(stream(seed, "texture"), cells) + np.select(
            [kinds == GLIA, kinds == AXON], [0.7, 0.35], 0.0
        )
        self._texture = (self._config.texture * texture).astype(np.float32)
        self._lumen = (30 * uniform(stream(seed, "lumen"), cells)).astype(np.float32)

    def _look_of_mitochondria(self) -> None:
        ids = self._sections.tissue.instances.get("mitochondrion", np.zeros(0, np.int64))
        seed = self._config.seed
        self._matrix = (84 + 56 * uniform(stream(seed, "matrix"), ids)).astype(np.float32)
        across = np.stack([normal(stream(seed, f"crista {n}"), ids) for n in range(3)])
        self._across = across / np.maximum(np.sqrt((across**2).sum(0)), 1e-3)
        self._cristae = (64 * self._config.cristae * uniform(stream(seed, "cristae"), ids)).astype(np.float32)

    def picture(self, z: int, planes: list[Plane]) -> Grey:
        """Return the image of section `z`, (y, x), without the edge, from planes through it from top to bottom."""
        thickness = self._sections.voxel_size[0]
        heights = [(z + (n + 0.5) / len(planes)) * thickness for n in range(len(planes))]
        exposed = np.mean([self._expose(z, *p) for p in zip(heights, planes, strict=True)], axis=0, dtype=np.float32)
        return self._develop(z, exposed.reshape(self._sections.shape), planes[len(planes) // 2])

    def _expose(self, z: int, height: float, plane: Plane) -> Grey:
        """Return the grey values of a plane, shape (n,)."""
        config, membrane = self._config, plane.sample.membrane
        cell = plane.sample.cell
        level = _CYTOSOL + self._shade.take(cell)
        self._reticulum(level, plane)
        self._mitochondria(level, z, height, plane)
        self._nuclei(level, z, height, plane)
        self._line(level, plane.distance("vesicle") + 5, 5, _VESICLE)
        self._line(level, plane.microtubule, 13, _TUBULE)
        reach = config.membrane_thickness / 2
        if config.cleft:
            between = np.flatnonzero(membrane < config.cleft / 2 + self._pixel)
            cover = self._cover(membrane[between], plane.cleft[between])
            level[between] += cover * (np.float32(_CLEFT) - level[between])
            # two membranes, with their darkest in the middle of each
            self._line(level, membrane - plane.cleft - np.float32(reach / 2), reach / 2, _MEMBRANE)
        else:
            self._line(level, membrane, reach, _MEMBRANE)
        self._synapses(level, plane)
        return level

    def _line(self, level: Grey, distance: Grey, half: float, dark: float) -> None:
        """Draw where a distance is less than `half`."""
        near = np.flatnonzero(np.abs(distance) < half + self._pixel)
        level[near] += self._cover(distance[near], np.float32(half)) * (np.float32(dark) - level[near])

    def _cover(self, distance: Grey, half: Grey | np.float32) -> Grey:
        """Return the share of a pixel that is nearer than `half`."""
        cover = (half - np.abs(distance)) / self._pixel + np.float32(0.5)
        return np.asarray(np.clip(cover, 0, np.minimum(1, 2 * half / self._pixel)), np.float32)

    def _reticulum(self, level: Grey, plane: Plane) -> None:
        lumen = np.flatnonzero(plane.reticulum < 0)
        level[lumen] += self._lumen.take(plane.sample.cell[lumen])
        self._line(level, plane.reticulum + 4, 4, _THIN)

    def _mitochondria(self, level: Grey, z: int, height: float, plane: Plane) -> None:
        distance = plane.distance("mitochondrion")
        inside = np.flatnonzero(distance < 0)
        if not len(inside):
            return
        index = plane.sample.organelles["mitochondrion"].index[inside]
        row, column = np.divmod(inside, self._sections.shape[1])
        _, y, x = self._sections.places(z)
        place = (np.float32(height), y.astype(np.float32)[row], x.astype(np.float32)[column])
        along = sum(a.take(index) * p for a, p in zip(self._across, place, strict=True))
        # bent by their distance from the rim, sheets look less drawn with a ruler
        wave = np.cos((along + np.float32(0.35) * distance[inside]) * np.float32(2 * np.pi / _CRISTA))
        level[inside] = self._matrix.take(index) + self._cristae.take(index) * wave
        self._line(level, distance, 5, _RIM)

    def _nuclei(self, level: Grey, z: int, height: float, plane: Plane) -> None:
        distance = plane.distance("nucleus")
        inside = np.flatnonzero(distance < 0)
        if len(inside):
            _, y, x = self._sections.places(z)
            chromatin = self._chromatin.on_axes(np.array([height]), y, x).ravel()[inside]
            level[inside] = _NUCLEUS - 40 * np.clip(6 * chromatin, -0.3, 1)
        for depth in _ENVELOPE:
            self._line(level, distance + np.float32(depth), 5, _THIN)

    def _synapses(self, level: Grey, plane: Plane) -> None:
        part = np.flatnonzero(plane.synapse >= 0)
        level[part] += np.float32(0.85) * (np.float32(_DENSE) - level[part])

    def _develop(self, z: int, exposed: Grey, middle: Plane) -> Grey:
        """Return the grey values (0 to 255) of a section: blurred, with grain, noise, uneven light and defects."""
        config, seen = self._config, self._seen
        at, y, x = self._sections.places(z)
        texture = self._texture.take(middle.sample.cell).reshape(exposed.shape)
        # what stains is in the cytosol, not in membranes
        texture *= np.clip((exposed - 90) / 60, 0, 1)
        grain = (40 + 30 * texture) * self._grain.on_axes(at, y, x)[0]
        grain -= 190 * texture * np.clip(self._specks.on_axes(at, y, x)[0] - np.float32(0.12), 0, 0.4)
        clean = self._blurred(exposed + grain)
        clean = 128 + np.float32(seen.span) * (clean - 128)
        clean += np.float32(25 * seen.curtains / 5) * self._inner(self._curtains.on_axes(at, y, x)[0])
        noise = self._noise(z)
        gain, offset = (
            normal(stream(config.seed, f"exposure {n}"), z) + 3 * self._inner(light.on_axes(at, y, x)[0])
            for n, light in enumerate(self._light)
        )
        # shot noise grows with the square root of what is counted
        noise *= config.noise_deviation * np.sqrt(np.clip(clean, 16, None) / 128)
        # block faces, imaged in place, are steadier than sections cut and collected one by one
        contrast = config.contrast_deviation * min(1, self._sections.voxel_size[0] / 40)
        grey = 128 + (clean - 128) * np.exp(contrast * gain) + 60 * contrast * offset
        return np.asarray(np.clip(np.rint(self._spoiled(z, grey, at, y, x) + noise), 0, 255), np.float32)

    def _noise(self, z: int) -> Grey:
        rows, columns = self._sections.rows, self._sections.columns
        noise = normal(stream(self._config.seed, "noise"), z, rows[:, None], columns[None, :])
        if not self._seen.grainy:
            return self._inner(noise)
        return self._blurred(noise) / float((self._blur**2).sum())

    def _spoiled(self, z: int, grey: Grey, at: Row, y: Row, x: Row) -> Grey:
        """Return a section with the defect that it has, if any."""
        seed = self._config.seed
        if uniform(stream(seed, "defect"), z) >= self._config.defects:
            return grey
        kind = _DEFECTS[int(hashed(stream(seed, "kind of defect"), z) % np.uint64(len(_DEFECTS)))]
        if kind == "missing":
            return np.full_like(grey, 250 * float(uniform(stream(seed, "blank"), z)))
        if kind == "dark":
            return np.asarray(40 + (grey - 40) * (0.25 + 0.4 * uniform(stream(seed, "blank"), z)), np.float32)
        field, slope = (self._inner(f[0]) for f in self._stains.with_slope(at, y, x))
        if kind == "dirt":
            cover = np.clip((field - np.float32(0.33)) * 25, 0, 1)
        else:
            cover = np.clip(1.6 - np.abs(field) / np.maximum(slope, np.float32(2e-5)) / 35, 0, 1)
        return np.asarray(grey + cover * (20 - grey), np.float32)

    def _blurred(self, plane: Grey) -> Grey:
        """Return a plane blurred, without the edge."""
        height, width = (n - 2 * EDGE for n in plane.shape)
        down = sum(w * plane[n : n + height] for n, w in enumerate(self._blur))
        return np.asarray(sum(w * down[:, n : n + width] for n, w in enumerate(self._blur)), np.float32)

    @staticmethod
    def _inner(plane: Grey) -> Grey:
        return plane[EDGE:-EDGE, EDGE:-EDGE]
