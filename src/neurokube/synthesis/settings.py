"""What synthetic neuropil is like: the settings of the tissue and of the microscope."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .neurites import Neurites
from .tissue import Density

Kind = Literal["fib-sem", "sbf-sem", "sstem"]


@dataclass(frozen=True)
class Microscope:
    """How a kind of microscope sees: what settings are where none is given, and what cannot be set.

    `blur` is the half of a symmetric kernel, in pixels; `span` scales grey values about mid-grey; `grainy`
    says that noise is blurred like the image, as on film and scintillators; `planes` is how many are
    averaged over a thick section; `curtains` is the deviation in grey values of the ion beam's stripes.
    """

    noise: float
    contrast: float
    shift: float
    blur: tuple[float, float, float]
    span: float
    grainy: bool
    planes: int
    curtains: float


MICROSCOPES: dict[Kind, Microscope] = {
    "fib-sem": Microscope(6, 0.01, 0.0, (0.46, 0.22, 0.05), 0.85, False, 1, 2.0),
    "sbf-sem": Microscope(13, 0.02, 0.02, (0.4, 0.24, 0.06), 0.6, False, 1, 0.0),
    "sstem": Microscope(11, 0.06, 0.15, (0.6, 0.19, 0.01), 1.15, True, 3, 0.0),
}


class Neuropil(BaseModel):
    """What synthetic neuropil is like; lengths in nm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, lt=2**31, description="another seed, another tissue")
    neurite_diameter: float = Field(320, ge=100, le=2000, description="mean diameter of a neurite")
    membrane_thickness: float = Field(22, gt=0, description="of the membranes between two cells, together")
    cleft: float = Field(0, ge=0, le=100, description="extracellular space between two cells, where it is widest")
    mitochondria: float = Field(0.5, ge=0, le=1, description="share of the sites in wide neurites that hold one")
    vesicles: float = Field(0.55, ge=0, le=1, description="share of the sites along axons that hold a cluster")
    synapses: float = Field(0.9, ge=0, le=1, description="share of the clusters of vesicles at a synapse")
    reticulum: float = Field(0.8, ge=0, le=1, description="extent of the endoplasmic reticulum: 0 none, 1 plenty")
    microtubules: float = Field(0.5, ge=0, le=1, description="share of the places in a neurite that hold one")
    somata: float = Field(0.1, ge=0, le=1, description="share of the sites of cell bodies, some 9 um apart, with one")
    cristae: float = Field(0.6, ge=0, le=1, description="how clearly cristae show in mitochondria")
    texture: float = Field(1, ge=0, le=3, description="strength of the grain of cytosol: ribosomes, filaments")
    microscope: Kind = Field("sstem", description="which kind took the image")
    noise: float | None = Field(
        None, ge=0, description="deviation in grey values at mid-grey; by default the microscope's"
    )
    contrast: float | None = Field(
        None, ge=0, le=0.5, description="deviation of gain and brightness between sections of 40 nm; likewise"
    )
    shift: float | None = Field(
        None, ge=0, le=1, description="deviation of a section's place in xy, in section thicknesses; likewise"
    )
    boundary_gaps: float = Field(0.1, ge=0, le=0.9, description="share of membranes that a boundary map misses")
    boundary_noise: float = Field(0.1, ge=0, le=1, description="deviation of a boundary map from what is right")
    defects: float = Field(0, ge=0, le=0.5, description="share of sections folded, dirty, dark or missing")

    @model_validator(mode="after")
    def _thin_membranes(self) -> Self:
        if self.membrane_thickness + self.cleft > self.neurite_diameter / 12:
            raise ValueError("membrane_thickness: with cleft, at most a twelfth of neurite_diameter")
        return self

    @property
    def seen_by(self) -> Microscope:
        """The microscope, as its kind is or as set otherwise."""
        return MICROSCOPES[self.microscope]

    @property
    def neurites(self) -> Neurites:
        """The neurites of the tissue."""
        return Neurites(self.seed, self.neurite_diameter, self.somata)

    @property
    def density(self) -> Density:
        """The shares of sites that hold an organelle."""
        return Density(self.mitochondria, self.vesicles, self.synapses, self.microtubules)

    @property
    def gap(self) -> float:
        """How far (nm) organelles keep from the border of their cell."""
        return (self.membrane_thickness + self.cleft) / 2 + 12

    @property
    def shift_deviation(self) -> float:
        """The deviation of a section's place, set or the microscope's."""
        return self.seen_by.shift if self.shift is None else self.shift

    @property
    def noise_deviation(self) -> float:
        """The deviation of the noise, set or the microscope's."""
        return self.seen_by.noise if self.noise is None else self.noise

    @property
    def contrast_deviation(self) -> float:
        """The deviation of gain and brightness between sections, set or the microscope's."""
        return self.seen_by.contrast if self.contrast is None else self.contrast
