"""Every key of a network and of a recipe, checked.

An unknown key, a value out of range and settings that contradict each other are errors.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


def _split(value: Any) -> Any:
    """`"crop,flip"`, as papermill passes a list, becomes `["crop", "flip"]`; a number, `[2]`."""
    if isinstance(value, int | float):
        return [value]
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("give a number, not true or false")
    return value


def _null(value: Any) -> Any:
    """`none` switches a part off, since `None` means the variant's own value."""
    return None if value == "none" else value


NotBool = BeforeValidator(_refuse_bool)
OrNone = BeforeValidator(_null)
Count = Annotated[PositiveInt, NotBool]
Positive = Annotated[PositiveFloat, NotBool]
NotNegative = Annotated[NonNegativeFloat, NotBool]
Rate = Annotated[float, Field(ge=0, lt=1), NotBool]
UnitInterval = Annotated[float, Field(ge=0, le=1), NotBool]


class Model(BaseModel):
    """Unknown keys, infinities and changes after construction are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SqueezeExcitationConfig(Model):
    """Where channel attention stands: nowhere, once after the stem, or at the end of each block."""

    placement: Literal["none", "stem", "block"] = "none"
    reduction: Count = 16

    @model_validator(mode="after")
    def _reduction_acts(self) -> Self:
        if self.placement == "none" and self.reduction != 16:
            raise ValueError("reduction has no effect while placement is 'none'")
        return self


SIDE = 32  # pixels of every image here
IMAGE_SHAPE = (3, SIDE, SIDE)  # channels, height, width of every data set here
NUM_CLASSES = 10  # of CIFAR-10, and of the digits
WHITENING_CHANNELS = 24  # the 12 directions of 2×2 patches in colour, each with its negative


class Architecture(Model):
    """The network: stem, stages of blocks, pooled linear head."""

    block: Literal["basic", "dropout", "preact", "pooled"]
    depths: Annotated[tuple[Annotated[NonNegativeInt, NotBool], ...], BeforeValidator(_split)]
    widths: Annotated[tuple[Count, ...], BeforeValidator(_split)]
    # Of the first block of each stage; 1 in the first stage and 2 in the others unless given.
    strides: Annotated[
        tuple[Annotated[int, Field(ge=1, le=2), NotBool], ...] | None, BeforeValidator(_split)
    ] = None
    stem: Literal["conv3x3", "whitening"] = "conv3x3"
    stem_width: Count | None = None  # channels; those of the first stage unless given
    conv_bias: bool = False
    batch_norm_scale: bool = True  # BatchNorm's weight is trained; else it stays 1
    zero_init_residual: bool = False  # each block begins as its shortcut (Goyal et al. 2017, 5.1)
    dropout: Rate = 0.0
    squeeze_excitation: SqueezeExcitationConfig = SqueezeExcitationConfig()
    stochastic_depth: Rate = 0.0  # how often the last block is passed over; rises from the first
    listed_layers: Annotated[tuple[Literal["stem_relu", "pool"], ...], BeforeValidator(_split)] = (
        "pool",
    )  # parameterless layers that are modules, and so rows of the summary

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.depths) != len(self.widths):
            raise ValueError(
                f"depths has {len(self.depths)} stages and widths {len(self.widths)}; "
                "give one of each a stage"
            )
        if self.strides and len(self.strides) != len(self.depths):
            raise ValueError(
                f"strides has {len(self.strides)} stages and depths {len(self.depths)}; "
                "give one of each a stage"
            )
        if not any(self.depths):
            raise ValueError("depths needs at least one block")
        if self.stem == "whitening" and self.stem_width:
            raise ValueError(
                f"stem_width has no effect: stem 'whitening' has {WHITENING_CHANNELS} channels"
            )
        if self.stem == "whitening" and self.block == "preact":
            raise ValueError("stem 'whitening' has a ReLU, and block 'preact' a stem without one")
        if not self.outputs[-1][1]:
            raise ValueError("after so many halvings of the image nothing is left to pool")
        if self.zero_init_residual and not self.batch_norm_scale and self.block != "preact":
            raise ValueError(
                "zero_init_residual begins with a BatchNorm weight of 0, which would stay 0 "
                "without batch_norm_scale"
            )
        if self.dropout and self.block != "dropout":
            raise ValueError(f"dropout acts in block 'dropout' only, and block is {self.block!r}")
        return self

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Of the first block of each stage."""
        count = len(self.depths)
        return ((self.strides or (1,)) + (2,) * count)[:count]

    @property
    def outputs(self) -> tuple[tuple[int, int], ...]:
        """(channels, height and width) of what leaves the stem and each stage."""
        whitening = self.stem == "whitening"
        channels = WHITENING_CHANNELS if whitening else self.stem_width or self.widths[0]
        side = SIDE - 1 if whitening else SIDE  # 2×2 filters, without padding
        shapes = [(channels, side)]
        for depth, width, stride in zip(self.depths, self.widths, self.stage_strides, strict=True):
            if depth:
                channels = width
                # Max-pooling leaves an odd last row out; a convolution with padding does not.
                side = side // stride if self.block == "pooled" else -(-side // stride)
            shapes.append((channels, side))
        return tuple(shapes)


# Which parameters decay: all, or only the weights of convolutions and of the linear layer. The
# others, biases and BatchNorm, learn at `bias_lr_factor` times the rate.
DecayOn = Literal["all", "weights"]


class Sgd(Model):
    name: Literal["sgd"]
    lr: Positive
    momentum: Rate = 0.0
    nesterov: bool = False
    weight_decay: NotNegative = 0.0
    decay_on: DecayOn = "all"
    bias_lr_factor: Positive = 1.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Adam(Model):
    """Adam, or AdamW with its decoupled weight decay."""

    name: Literal["adam", "adamw"]
    lr: Positive
    betas: Annotated[tuple[Rate, Rate], BeforeValidator(_split)] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    decay_on: DecayOn = "all"
    bias_lr_factor: Positive = 1.0


class Constant(Model):
    name: Literal["constant"]
    interval: Literal["epoch", "step"] = "epoch"
    warmup_epochs: NotNegative = 0.0
    warmup_start: UnitInterval = 0.1


class Cosine(Model):
    """Warm-up, hold, then half a cosine from lr to min_lr over period_epochs (null: the rest)."""

    name: Literal["cosine"]
    interval: Literal["epoch", "step"] = "epoch"
    warmup_epochs: NotNegative = 0.0
    warmup_start: UnitInterval = 0.1
    hold_epochs: NotNegative = 0.0
    period_epochs: Annotated[Positive | None, OrNone] = None
    min_lr: NotNegative = 0.0


class StepDecay(Model):
    name: Literal["step"]
    milestones: Annotated[tuple[Count, ...], BeforeValidator(_split)]
    gamma: Annotated[float, Field(gt=0, le=1), NotBool] = 0.1
    interval: Literal["epoch", "step"] = "epoch"
    warmup_epochs: NotNegative = 0.0
    warmup_start: UnitInterval = 0.1


class OneCycle(Model):
    """Smith's one-cycle rate as torch draws it, step by step; momentum stays constant."""

    name: Literal["one_cycle"]
    pct_start: Annotated[float, Field(gt=0, lt=1), NotBool] = 0.3
    div_factor: Annotated[float, Field(ge=1), NotBool] = 25.0
    final_div_factor: Annotated[float, Field(ge=1), NotBool] = 1e4


Optimizer = Annotated[Sgd | Adam, Field(discriminator="name")]
Schedule = Annotated[Constant | Cosine | StepDecay | OneCycle, Field(discriminator="name")]


class Lookahead(Model):
    """Every k steps, slow weights move by alpha towards the fast ones, which restart there."""

    k: Count = 5
    alpha: Annotated[float, Field(gt=0, le=1), NotBool] = 0.5


class Clip(Model):
    """Gradients clipped to ±limit each (`value`) or to that joint L2 norm (`norm`)."""

    by: Literal["value", "norm"]
    limit: Positive


class Ema(Model):
    """Exponential moving average of the weights, which is then what is evaluated and kept."""

    decay: Annotated[float, Field(gt=0, lt=1), NotBool] = 0.999


class Sam(Model):
    """Sharpness-aware minimisation: gradients at the worst point within rho (Foret et al. 2020)."""

    rho: Positive = 0.05


class Crop(Model):
    """A window of the image's own size after padding, both offsets uniform (`RandomCrop`)."""

    name: Literal["crop"]
    # Pixels on each side (He et al. 2015, section 4.2); less than an image, or nothing is left.
    padding: Annotated[int, Field(ge=1, le=31), NotBool] = 4
    padding_mode: Literal["constant", "reflect"] = "constant"


class Flip(Model):
    """Left and right exchanged (`RandomHorizontalFlip`).

    `alternate` draws once which images begin turned; from then on each is shown from one side and
    from the other in turn, an epoch each (Jordan 2024).
    """

    name: Literal["flip"]
    probability: UnitInterval = 0.5
    alternate: bool = False

    @model_validator(mode="after")
    def _turns_half(self) -> Self:
        if self.alternate and self.probability != 0.5:
            raise ValueError("alternate turns each image every second time; leave out probability")
        return self


class ColorJitter(Model):
    """Brightness, contrast, saturation, hue by random factors in random order (`ColorJitter`)."""

    name: Literal["color_jitter"]
    brightness: NotNegative = 0.2
    contrast: NotNegative = 0.2
    saturation: NotNegative = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5), NotBool] = 0.0

    @model_validator(mode="after")
    def _acts(self) -> Self:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("all four strengths are 0; leave color_jitter out instead")
        return self


class Rotation(Model):
    """Rotation by an angle uniform on ±degrees, nearest pixel, black outside (`RandomRotation`)."""

    name: Literal["rotation"]
    degrees: Annotated[float, Field(gt=0, le=180), NotBool] = 15.0


class AutoAugment(Model):
    """One of the 25 learned pairs of operations for CIFAR-10 (Cubuk et al. 2018; `AutoAugment`)."""

    name: Literal["auto_augment"]


class RandAugment(Model):
    """`num_ops` operations of one magnitude (Cubuk et al. 2019; `RandAugment`)."""

    name: Literal["rand_augment"]
    num_ops: Count = 2
    magnitude: Annotated[int, Field(ge=0, le=30), NotBool] = 9  # of bins 0 to 30


class TrivialAugment(Model):
    """One operation of a random magnitude (Müller & Hutter 2021; `TrivialAugmentWide`)."""

    name: Literal["trivial_augment"]


class Cutout(Model):
    """A grey square, its centre uniform, cut off at the border (DeVries & Taylor 2017)."""

    name: Literal["cutout"]
    size: Count = 16  # pixels; the paper's for CIFAR-10
    probability: UnitInterval = 1.0


class RandomErasing(Model):
    """A black rectangle of random area and shape (Zhong et al. 2017; `RandomErasing`)."""

    name: Literal["random_erasing"]
    probability: UnitInterval = 0.5
    scale: Annotated[tuple[UnitInterval, UnitInterval], BeforeValidator(_split)] = (0.02, 0.33)
    ratio: Annotated[tuple[Positive, Positive], BeforeValidator(_split)] = (0.3, 3.3)

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} = ({low:g}, {high:g}): give the lower bound first")
        return self


class MixUp(Model):
    """Two images and their labels blended by Beta(alpha, alpha) (Zhang et al. 2017)."""

    name: Literal["mixup"]
    alpha: Positive = 1.0
    probability: UnitInterval = 1.0


class CutMix(Model):
    """A rectangle of another image, labels by area, from Beta(alpha, alpha) (Yun et al. 2019)."""

    name: Literal["cutmix"]
    alpha: Positive = 1.0
    probability: UnitInterval = 1.0


def _named(value: Any) -> Any:
    """`crop` is short for `{name: crop}`."""
    return {"name": value} if isinstance(value, str) else value


_Augment = (
    Crop
    | Flip
    | ColorJitter
    | Rotation
    | AutoAugment
    | RandAugment
    | TrivialAugment
    | Cutout
    | RandomErasing
    | MixUp
    | CutMix
)
Augment = Annotated[_Augment, Field(discriminator="name")]


class OneOf(Model):
    """For each batch one of these, all equally likely."""

    name: Literal["one_of"]
    choices: Annotated[
        tuple[Annotated[Augment, BeforeValidator(_named)], ...],
        BeforeValidator(_split),
    ]

    @model_validator(mode="after")
    def _there_is_a_choice(self) -> Self:
        if len(self.choices) < 2:
            raise ValueError("one_of needs at least two choices")
        return self


AugmentStep = Annotated[_Augment | OneOf, Field(discriminator="name")]
Augments = Annotated[
    tuple[Annotated[AugmentStep, BeforeValidator(_named)], ...],
    BeforeValidator(_split),
]


class Recipe(Model):
    """Everything about training that is not the network."""

    epochs: Count
    batch_size: Count
    optimizer: Optimizer
    schedule: Schedule
    lookahead: Annotated[Lookahead | None, OrNone] = None
    clip: Annotated[Clip | None, OrNone] = None
    sam: Annotated[Sam | None, OrNone] = None
    ema: Annotated[Ema | None, OrNone] = None
    label_smoothing: Rate = 0.0
    augment: Augments = ()
    normalize: Literal["dataset", "per_image_std", "none"] = "dataset"
    holdout: Annotated[NonNegativeInt, NotBool] = 0
    select: Literal["last", "best_holdout", "best_test"] = "last"

    @model_validator(mode="after")
    def _selection_has_data(self) -> Self:
        if self.select == "best_holdout" and not self.holdout:
            raise ValueError("select 'best_holdout' needs holdout above 0")
        return self


def block_names() -> tuple[str, ...]:
    """The kinds of block that an architecture may have."""
    return get_args(Architecture.model_fields["block"].annotation)


def tagged_models(*unions: Any) -> dict[str, type[Model]]:
    """The models of these unions (default: all) by each `name` that chooses them."""
    unions = unions or (Optimizer, Schedule, AugmentStep)
    kinds = [kind for union in unions for kind in get_args(get_args(union)[0])]
    return {name: kind for kind in kinds for name in get_args(kind.model_fields["name"].annotation)}
