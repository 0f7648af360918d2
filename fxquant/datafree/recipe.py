"""A data-free method as data: what draws images, what they minimise, what the student minimises."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from fxquant.datafree.pixel_scale import SCALES
from fxquant.datafree.plain import build, check_numbers, require
from fxquant.ranges import ESTIMATORS

TERMS = (
    *("bn_statistics", "input_statistics", "patch_similarity", "classes"),
    *("features", "output"),
)
WEIGHTINGS = ("none", "layer", "sample")
IMPORTANCE_METHODS = ("gauss-newton", "hessian")

# Generated images that are kept apart from training, to tell how close the student stays.
HELD_BACK = 128


@dataclass(frozen=True)
class Term:
    """One weighted loss.

    `loss`: `bn_statistics` (distance to the teacher's batch norm statistics), `input_statistics`
    (distance of the images from mean 0 and deviation 1), `patch_similarity` (how alike the patches
    of an image are to each other, where the network has no batch norms), `classes` (how undecided
    the teacher is on each image, and how few classes it sees in all), `features` (distance of
    teacher and student at the feature taps), `output` (divergence of their outputs). A negative
    `weight` seeks what the loss measures. `weighting` brings in layer importance h: `layer` is X2,
    a factor 1 + h_i for layer i; `sample` is X1, the same for sample i alone; `none` is neither.
    `per_sample` takes statistics of each image instead of the batch. `distance` is l1 or mse.
    """

    loss: str
    weight: float = 1.0
    weighting: str = "none"
    per_sample: bool = False
    distance: str = "l1"
    temperature: float = 4.0

    def __post_init__(self) -> None:
        check_numbers(self, f"term '{self.loss}'")
        require(self.loss in TERMS, f"unknown loss '{self.loss}'", f"one of {', '.join(TERMS)}")
        require(
            self.weighting in WEIGHTINGS,
            f"unknown weighting '{self.weighting}' of loss '{self.loss}'",
            f"one of {', '.join(WEIGHTINGS)}",
        )
        require(self.distance in ("l1", "mse"), f"unknown distance '{self.distance}'", "l1 or mse")
        require(self.temperature > 0, f"temperature is {self.temperature}; expected above 0")

    @property
    def needs_student(self) -> bool:
        return self.loss in ("features", "output")


@dataclass(frozen=True)
class Sampler:
    """What draws images: `generator` (a network fed with noise) or `images` (pixels themselves).

    `batches` is how many batches of images are optimised one after the other where they are
    optimised directly; a generator has one life. `pixels` is the scale of the images, one of
    `fxquant.datafree.pixel_scale.SCALES`, or `measured`: which of them fits the first batch norm.
    """

    kind: str
    lr: float
    betas: tuple[float, float] = (0.5, 0.999)
    latent: int = 256
    width: int = 128
    batches: int = 1
    pixels: str = "standard"

    def __post_init__(self) -> None:
        check_numbers(self, "sampler")
        require(
            self.pixels in ("measured", *SCALES),
            f"unknown scale '{self.pixels}' of the sampler's pixels",
            f"one of {', '.join(('measured', *SCALES))}",
        )
        require(
            self.kind in ("generator", "images"),
            f"unknown sampler '{self.kind}'",
            "generator or images",
        )
        require(self.lr > 0, f"the sampler's learning rate is {self.lr}; expected above 0")
        for name, least in (("batches", 1), ("latent", 1), ("width", 2)):
            value = getattr(self, name)
            require(value >= least, f"the sampler's {name} is {value}; expected at least {least}")
        require(
            isinstance(self.betas, tuple)
            and len(self.betas) == 2
            and all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in self.betas),
            f"the sampler's betas are {self.betas!r}; expected two numbers from 0 to below 1",
        )


@dataclass(frozen=True)
class Schedule:
    """How long, how large and how fast.

    The student is compared on a `batch` in `parts`, one after the other: more of them take less
    memory and some more time, and train the same, but for rounding.
    `warmup`: sampler steps before there is a student; `adversarial`: sampler steps against the
    calibrated, fixed student where it is not fine-tuned; `steps`: student steps, 0 for
    calibration only; `sampler_every`: student steps per sampler step. `replay`: images kept for
    the student to train on, half of each batch, and as many of those that the sampler makes
    meanwhile for the other half; 0 to draw fresh ones each step; `crop`: pixels by which a replayed
    image is shifted at most, beside being mirrored. `ranges` says how a quantizer's range follows
    from the values on `calibration_images` (`fxquant.ranges.ESTIMATORS`); that of what the first
    layer reads goes `input_reach` of their standard deviations each way at least, where it is
    above 0 (`fxquant.calibration.calibrate`). `round_weights` and `correct_biases` adjust the
    layers in closed form (`fxquant.calibration.adjust_layers`);
    `analytic_biases` corrects biases before, by what batch norms tell alone
    (`fxquant.graph.correct_biases`).
    `student_lr` is in steps of each layer's own grid, `scale_lr` that of the scales' logarithms;
    both follow half a cosine to 0. `train_below` leaves a student as it was calibrated where its
    outputs have at least so much SQNR, in dB, on images held back; 0 trains it in any case.
    `keep_closer` undoes reconstruction or fine-tuning that took the student farther away there.
    """

    batch: int = 64
    parts: int = 1
    warmup: int = 400
    adversarial: int = 100
    steps: int = 1000
    sampler_every: int = 1
    student_lr: float = 2e-3
    scale_lr: float = 2e-4
    replay: int = 0
    crop: int = 0
    calibration_images: int = 512
    ranges: str = "search"
    input_reach: float = 0.0
    round_weights: bool = True
    correct_biases: bool = True
    analytic_biases: bool = False
    train_below: float = 0.0
    keep_closer: bool = True

    def __post_init__(self) -> None:
        check_numbers(self, "schedule")
        for name in ("batch", "parts", "sampler_every", "calibration_images"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected above 0")
        require(
            self.ranges in ESTIMATORS,
            f"unknown range estimator '{self.ranges}'",
            f"one of {', '.join(ESTIMATORS)}",
        )
        for item in fields(self):
            value = getattr(self, item.name)
            require(item.name == "ranges" or value >= 0, f"{item.name} must not be negative")


@dataclass(frozen=True)
class Polish:
    """What becomes of a generator's images before they are kept: their pixels are optimised.

    `steps` on the terms that need no student, for `batches` of `batch` images, at a learning
    rate that follows half a cosine from `lr` to 0. No steps: images stay as they were drawn.
    """

    steps: int = 0
    batches: int = 8
    batch: int = 128
    lr: float = 0.05

    def __post_init__(self) -> None:
        check_numbers(self, "polish")
        require(self.steps >= 0, f"polish.steps is {self.steps}; expected at least 0")
        for name in ("batches", "batch", "lr"):
            require(getattr(self, name) > 0, f"polish.{name} is {getattr(self, name)}")


@dataclass(frozen=True)
class Reconstruction:
    """How units are reconstructed after calibration: see `fxquant.datafree.reconstruct`.

    `steps` for each unit, 0 for none, on batches of `batch`. `rounding_lr` is that of AdaRound's
    variables, `scale_lr` that of the scales' logarithms, `bias_lr` is in steps of the layer's
    grid; the last two follow half a cosine to 0. `drop`: share of values that stay in floating
    point (QDrop). `decide` weighs AdaRound's regulariser, after a share `free` of the steps.
    """

    steps: int = 0
    batch: int = 32
    rounding_lr: float = 1e-2
    scale_lr: float = 1e-3
    bias_lr: float = 1e-2
    drop: float = 0.5
    decide: float = 1e-2
    free: float = 0.2

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            require(value >= 0, f"reconstruction.{item.name} is {value}; expected at least 0")
        require(self.batch >= 1, f"reconstruction.batch is {self.batch}; expected above 0")
        for name in ("drop", "free"):
            value = getattr(self, name)
            require(value < 1, f"reconstruction.{name} is {value}; expected a share below 1")


@dataclass(frozen=True)
class ImportanceSettings:
    """How layer importance is measured and normalised: see `fxquant.datafree.importance`."""

    method: str = "gauss-newton"
    probes: int = 50
    images: int = 64
    normalize: str = "mean"

    def __post_init__(self) -> None:
        check_numbers(self, "importance")
        require(
            self.method in IMPORTANCE_METHODS,
            f"unknown importance method '{self.method}'",
            " or ".join(IMPORTANCE_METHODS),
        )
        require(
            self.normalize in ("mean", "max", "rank", "none"),
            f"unknown importance normalisation '{self.normalize}'",
            "mean, max, rank or none",
        )
        require(self.probes >= 2, f"importance probes is {self.probes}; expected at least 2")
        require(self.images >= 1, f"importance images is {self.images}; expected at least 1")


@dataclass(frozen=True)
class Recipe:
    """A method: its sampler, the terms that sampler and student minimise, and how long it takes."""

    name: str
    sampler: Sampler
    sample_terms: tuple[Term, ...]
    student_terms: tuple[Term, ...] = ()
    schedule: Schedule = field(default_factory=Schedule)
    polish: Polish = field(default_factory=Polish)
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    importance: ImportanceSettings = field(default_factory=ImportanceSettings)

    def __post_init__(self) -> None:
        require(
            self.name.isprintable() and 0 < len(self.name) <= 100,
            f"the recipe's name is {self.name[:100]!a}; expected 1 to 100 printable characters",
        )
        for key in ("sample_terms", "student_terms"):
            names = [term.loss for term in getattr(self, key)]
            twice = [name for name in names if names.count(name) > 1]
            require(not twice, f"{key} of recipe '{self.name}' hold {', '.join(twice[:1])} twice")
        alone = self.schedule.warmup + self.polish.steps
        require(
            bool(self.sample_terms) or (alone == 0 and self.sampler.kind == "generator"),
            f"recipe '{self.name}' has no sample terms",
            "without any a generator stays untrained: schedule.warmup = 0 and polish.steps = 0",
        )
        require(
            alone == 0 or not all(t.needs_student for t in self.sample_terms),
            f"recipe '{self.name}' has a warm-up and no sample term that does without a student",
            "bn_statistics or input_statistics, or schedule.warmup = 0 and polish.steps = 0",
        )
        if self.sampler.kind == "images":
            require(
                self.schedule.warmup > 0 and self.polish.steps == 0,
                f"recipe '{self.name}' optimises images, which takes a warm-up and no polish",
                "schedule.warmup above 0 and polish.steps = 0",
            )
        require(
            self.schedule.steps == 0 or bool(self.student_terms),
            f"recipe '{self.name}' has {self.schedule.steps} student steps and no student terms",
        )

    @property
    def uses_importance(self) -> bool:
        return any(t.weighting != "none" for t in self.sample_terms + self.student_terms)

    def without_fine_tuning(self) -> Recipe:
        """The same images, as many as calibration needs, and no student steps."""
        needed = -(-(self.schedule.calibration_images + HELD_BACK) // self.polish.batch)
        polish = replace(self.polish, batches=min(self.polish.batches, needed))
        return replace(self, schedule=replace(self.schedule, steps=0), polish=polish)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for TOML and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`; raises SettingError for an unknown key or a wrong type."""
        require(isinstance(values, dict), f"recipe is {values!r}; expected a table")
        for key in ("sample_terms", "student_terms"):
            term = values.get(key, [])
            require(
                isinstance(term, list | tuple),
                f"recipe.{key} is {term!r}; expected a list of tables",
            )
        terms = {
            key: tuple(build(Term, term, f"recipe.{key}") for term in values.get(key, ()))
            for key in ("sample_terms", "student_terms")
        }
        parts = {
            key: build(kind, values.get(key, {}), f"recipe.{key}")
            for key, kind in _PARTS.items()
            if key in values or key == "sampler"
        }
        return build(cls, {**values, **terms, **parts}, "recipe")


_PARTS = {
    "sampler": Sampler,
    "schedule": Schedule,
    "polish": Polish,
    "reconstruction": Reconstruction,
    "importance": ImportanceSettings,
}
