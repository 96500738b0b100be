"""Two generators and two discriminators: images of one kind to another without a single pair.

After Zhu, Park, Isola and Efros, "Unpaired image-to-image translation using cycle-consistent adversarial
networks" (ICCV 2017): least-squares adversarial losses, cycle and identity losses, discriminators that are shown
earlier images again, Adam whose rate falls to nothing in the second half.

    a --there--> b' --back--> a''      judged: b' against b (by `judge_there`), a'' against a
    b --back---> a' --there-> b''      judged: a' against a (by `judge_back`),  b'' against b
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from numpy.random import default_rng
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from ...networks import Normalization
from ...networks.generator import Generator, GeneratorConfig
from ...volumes.volume import Nanometres
from ..config import ImageTraining
from ..learner import Diverged
from ..sampling import Numbered
from .adversary import Discriminator, ImageBuffer
from .degradation import Degradation
from .restoration import ImageLearner
from .showcase import Showcase

RATE = 2e-4
WON = 0.01
"""A discriminator's mean loss over an interval below which it always wins; 0.25 says that it cannot tell."""
STILL = 0.01
"""Difference after there and back, in deviations, below which generators leave images as they are."""
GREY = 0.1
"""Contrast of made images, in that of real ones, below which a generator makes but one grey."""
_FIGURES = ("discriminator", "discriminator_back", "adversarial", "cycle", "identity", "contrast", "contrast_real")


class Collapsed(Diverged):
    """One of the networks has won, or makes one image of all."""


class CycleGAN(ImageLearner):
    """Trains `network`, the generator there, and the one back; `network` is what is kept.

    What is kept is the last good one: no figure tells whether an image looks real.
    """

    def __init__(
        self,
        settings: ImageTraining,
        there: Generator,
        back: nn.Module,
        windows: Numbered,
        showcase: Showcase,
        normal: Sequence[Normalization],
        voxel_size: Nanometres,
        shapes: tuple[tuple[int, int, int], tuple[int, int, int]],
    ) -> None:
        """`shapes` are those (z, y, x) of the windows a and b."""
        super().__init__(settings, there, windows, showcase, normal, voxel_size, RATE)
        self.automatic_optimization = False
        gan, plane = settings.gan, there.config.plane
        self.weights = gan
        self.back = back.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        judges, buffers = [], []
        for shape in shapes:
            sides = [shape["zyx".index(axis)] for axis in plane]
            judges.append(Discriminator(gan.features, (sides[0], sides[1]), plane))
            buffers.append(ImageBuffer(gan.buffer, (1, *shape)))
        self.judge_back, self.judge_there = judges
        self.buffer_back, self.buffer_there = buffers
        self._sums = torch.zeros(len(_FIGURES), dtype=torch.float64)
        self._count = 0

    def there(self, a: Tensor) -> Tensor:
        """Return images of the kind b, with as many sections as those have."""
        made: Tensor = self.network(a.contiguous(memory_format=torch.channels_last_3d))
        return made

    @abstractmethod
    def identity(self, a: Tensor, b: Tensor, made_a: Tensor, made_b: Tensor) -> Tensor:
        """Return how far the generators change what they should keep."""

    def further(self, b: Tensor, cycled_b: Tensor) -> Tensor | None:
        """Return another loss on what came back, weighted."""
        return None

    def configure_optimizers(self) -> Any:
        """Adam, one for both generators and one for both discriminators, as in the paper."""
        steps, rate = self.schedule.steps, self.learning_rate
        generators = [*self.network.parameters(), *self.back.parameters()]
        judges = [*self.judge_there.parameters(), *self.judge_back.parameters()]
        optimizers = [
            torch.optim.Adam(generators, rate, betas=(0.5, 0.999)),
            torch.optim.Adam(judges, rate * self.weights.rate, betas=(0.5, 0.999)),
        ]
        half = steps - steps // 2
        # flat at first, then down to nothing
        schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (steps - step) / half))
            for optimizer in optimizers
        ]
        return optimizers, schedules

    def on_train_epoch_start(self) -> None:
        """Forget the figures of the interval before."""
        if self._count and self.step % self.schedule.interval:
            # it goes on after a stop
            self._sums = self._sums.to(self.device)
            return
        self._sums = torch.zeros(len(_FIGURES), dtype=torch.float64, device=self.device)
        self._count = 0

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Learn from a batch of a and b: the generators first, then the discriminators.

        Raises:
            Diverged: where a loss is no number.
        """
        a, b = batch
        random = default_rng([self.schedule.seed, 2**31, self.step])
        # both are lists here: there are two
        optimizers: Any = self.optimizers()
        schedules: Any = self.lr_schedulers()
        with_generators, with_judges = optimizers
        weights = self.weights

        self.toggle_optimizer(with_generators)
        made_b, made_a = self.there(a), self.back(b)
        cycled_a, cycled_b = self.back(made_b), self.there(made_a)
        adversarial = _miss(self.judge_there(made_b), 1) + _miss(self.judge_back(made_a), 1)
        cycle = l1_loss(cycled_a.float(), a) + l1_loss(cycled_b.float(), b)
        identity = self.identity(a, b, made_a, made_b) if weights.identity else torch.zeros_like(cycle)
        loss = weights.adversarial * adversarial + weights.cycle * cycle + weights.identity * identity
        if (more := self.further(b, cycled_b)) is not None:
            loss = loss + more
        self.note_loss(loss, index)
        with_generators.zero_grad()
        self.manual_backward(loss)
        with_generators.step()
        self.untoggle_optimizer(with_generators)

        self.toggle_optimizer(with_judges)
        shown_b, shown_a = self.buffer_there(made_b, random), self.buffer_back(made_a, random)
        judged_there = (_miss(self.judge_there(b), 1) + _miss(self.judge_there(shown_b), 0)) / 2
        judged_back = (_miss(self.judge_back(a), 1) + _miss(self.judge_back(shown_a), 0)) / 2
        with_judges.zero_grad()
        self.manual_backward(judged_there + judged_back)
        with_judges.step()
        self.untoggle_optimizer(with_judges)

        for schedule in schedules:
            schedule.step()
        figures = (judged_there, judged_back, adversarial, cycle, identity, _contrast(made_b), _contrast(b))
        self._sums += torch.stack([figure.detach().double() for figure in figures])
        self._count += 1

    def gathered(self) -> dict[str, Any]:
        """Return the sums of the interval's figures."""
        return {"sums": self._sums.cpu(), "count": self._count}

    def regather(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self._sums, self._count = state["sums"], state["count"]

    def validate_now(self) -> float | None:
        """Measure, but let the last step count as the best."""
        super().validate_now()
        return None

    def figures(self) -> dict[str, float | None]:
        """Return the means of the losses over the interval beside what the showcase measured."""
        means = (self._sums / max(1, self._count)).tolist()
        found = dict(zip(_FIGURES, means, strict=True))
        found["contrast"] /= found.pop("contrast_real") or 1
        return {**{name: round(value, 5) for name, value in found.items()}, **super().figures()}

    def alarm(self) -> Diverged | None:
        """Return what is wrong where a network has won or makes but one grey, by the means over the interval."""
        found = self.figures()
        verdict, contrast = found["discriminator"], found["contrast"]
        assert verdict is not None and contrast is not None
        error: Collapsed | None = None
        if contrast < GREY:
            error = Collapsed(
                f"the generator makes but one grey: at step {self.step} its images have {contrast:.2g} of the contrast "
                f"of real ones, less than {GREY:g}"
            )
        elif verdict < WON:
            error = Collapsed(
                f"the discriminator always wins: at step {self.step} its loss is {verdict:.2g}, less than {WON:g} "
                "(0.25 is a draw), from which the generator learns nothing"
            )
        if error is not None:
            weights = self.weights
            error.remedy = (
                f"lower learning_rate (now {self.learning_rate:g}) or gan.rate (now {weights.rate:g}), "
                "check that both kinds of image show the same kind of tissue,"
            )
            if contrast >= GREY and (found["cycle"] or 0) < STILL:
                # what cannot come back, as noise, is best left alone while the cycle weighs most
                error.remedy = (
                    f"the generators leave images as they are: lower gan.cycle (now {weights.cycle:g}) and "
                    f"gan.identity (now {weights.identity:g}); or {error.remedy}"
                )
        return error


class SectionsCycleGAN(CycleGAN):
    """From thick sections (a) to thin ones (b), and back by a network that takes sections out."""

    def __init__(self, *args: Any, degradation: Degradation, **more: Any) -> None:
        super().__init__(*args, **more)
        self._degradation = degradation

    def there(self, a: Tensor) -> Tensor:
        """Return thin sections, from the first thick one to the last."""
        return super().there(a)[:, :, : self._degradation.thin(a.shape[2])]

    def identity(self, a: Tensor, b: Tensor, made_a: Tensor, made_b: Tensor) -> Tensor:
        """Return how far thin sections, made thick again, differ from those given, both ways.

        An image of the other kind has another number of sections, so that what the paper asks for, that it stays as
        it is, cannot be asked here.
        """
        thickened = self._degradation.thickened
        return l1_loss(thickened(made_b.float()), a) + l1_loss(made_a.float(), thickened(b))


class Coarsener(nn.Module):
    """Thin sections (n, 1, factor * (z - 1) + 1, y, x) to thick ones (n, 1, z, y, x); untrained, the degradation."""

    def __init__(self, config: GeneratorConfig, degradation: Degradation) -> None:
        super().__init__()
        self._degradation, factor = degradation, degradation.factor
        self.network = Generator(config.model_copy(update={"factor": 1}))
        self.network.stem = nn.Conv3d(
            1, config.features, (2 * factor + 1, 1, 3), stride=(factor, 1, 1), padding=(factor, 0, 1)
        )

    def forward(self, thin: Tensor) -> Tensor:
        """Return thick sections."""
        network = self.network
        added: Tensor = network.head(network.blocks(network.stem(thin)))
        return self._degradation.thickened(thin) + added


class TranslationCycleGAN(CycleGAN):
    """From one look (a) to another (b), and back.

    With a model of the structures in b, what it finds must be the same after there and back: the idea of Januszewski
    and Jain, "Segmentation-enhanced CycleGAN" (bioRxiv 2019), for networks that label voxels.
    """

    def __init__(self, *args: Any, segmenter: "Segmenter | None" = None, **more: Any) -> None:
        super().__init__(*args, **more)
        # in a tuple, since it is no part of what learns, or of a checkpoint
        self._segmenter = (segmenter,)

    def identity(self, a: Tensor, b: Tensor, made_a: Tensor, made_b: Tensor) -> Tensor:
        """Return how far images change that look as they should already."""
        return l1_loss(self.there(b).float(), b) + l1_loss(self.back(a).float(), a)

    def further(self, b: Tensor, cycled_b: Tensor) -> Tensor | None:
        """Return how far what the segmentation model finds changes, where there is one."""
        (segmenter,) = self._segmenter
        if segmenter is None:
            return None
        segmenter.to(self.device)
        with torch.no_grad():
            before = segmenter(b)
        return segmenter.weight * l1_loss(segmenter(cycled_b), before)


class Segmenter(nn.Module):
    """A model that labels structures, as it is: normalized images to probabilities (n, labels, z, y, x).

    `scale` and `shift` bring grey values as normalized here to what the model takes.
    """

    def __init__(self, network: nn.Module, *, logits: bool, scale: float, shift: float, weight: float) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self._logits, self._scale, self._shift, self.weight = logits, scale, shift, weight

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities."""
        found: Tensor = self.network(image * self._scale + self._shift).float()
        return torch.sigmoid(found) if self._logits else found


def _miss(verdicts: Tensor, wanted: float) -> Tensor:
    return ((verdicts.float() - wanted) ** 2).mean()


def _contrast(image: Tensor) -> Tensor:
    return image.detach().float().flatten(1).std(1).mean()
