"""Every key of a network and of a recipe, with its unit, its default and where it comes from.

An unknown key, a value out of range and settings that contradict each other are errors. The comment
of a key is its description in `docs/variant_file.md` and `params/schema.json`.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from operator import attrgetter
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from .errors import closest_match, counted, shorten

Count = Annotated[int, Field(ge=1, lt=2**53)]
Natural = Annotated[int, Field(ge=0, lt=2**53)]
Rate = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
PositiveUnit = Annotated[float, Field(gt=0, le=1)]
OpenUnit = Annotated[float, Field(gt=0, lt=1)]
AtLeastOne = Annotated[float, Field(ge=1, le=10**12)]
Shear = Annotated[float, Field(ge=0, lt=90)]  # degrees
# Where nothing else limits a number: it neither overflows nor vanishes in float32.
Positive = Annotated[float, Field(ge=1e-30, le=1e30)]
NonNegative = Annotated[float, Field(ge=0, le=1e30)]
Level = Annotated[float, Field(ge=-(10**6), le=10**6)]
Deviation = Annotated[float, Field(ge=1e-6, le=10**6)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Strength = Annotated[float, Field(ge=0, le=10)]  # all pixels are black or white long before


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError("give an odd number")
    return kernel


OddKernel = Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)]

SIDE = 32  # pixels of every image here
IMAGE_SHAPE = (3, SIDE, SIDE)  # channels, height, width of every data set here
NUM_CLASSES = 10  # of CIFAR-10, and of the digits
WHITENING_CHANNELS = 24  # the 12 directions of 2×2 patches in colour, each with its negative
MAX_CHANNELS, MAX_BLOCKS, MAX_STAGES = 65_536, 1_000, 16  # sizes of these fit in 64 bits
# Where another optimizer is chosen; torch's own, but for sgd.
DEFAULT_LR = {
    "sgd": 0.1,
    "adam": 0.001,
    "adamw": 0.001,
    "radam": 0.001,
    "nadam": 0.002,
    "adamax": 0.002,
    "adadelta": 1.0,
    "adagrad": 0.01,
    "rmsprop": 0.01,
}


class Model(BaseModel):
    """Unknown keys, infinities and changes after construction are errors.

    Short forms: `crop` for `{name: crop}`, `"crop,flip"` or one value for a list, `none` for null
    and for an empty list.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        read = {}
        for key, value in values.items():
            if key not in cls.model_fields:
                close = closest_match(str(key), cls.model_fields) or "."
                known = ", ".join(cls.model_fields)
                raise ValueError(f"unknown key {shorten(key)}{close} One of: {known}")
            try:
                read[key] = _read_short_form(value, _types(cls.model_fields[key].annotation))
            except ValueError as error:
                problem = PydanticCustomError("short_form", "{message}", {"message": str(error)})
                details = [InitErrorDetails(type=problem, loc=(key,), input=value)]
                raise ValidationError.from_exception_data(cls.__name__, details) from None
        return read


def _read_short_form(value: Any, types: frozenset[type]) -> Any:
    """The value in full; `ValueError` for a truth value in place of a number, or the reverse."""
    is_text = isinstance(value, str)
    if is_text and value == "none" and NoneType in types:
        return None
    if is_text and bool in types and value != "auto":
        if value.lower() not in ("true", "false"):
            raise ValueError("give true or false")
        return value.lower() == "true"
    if tuple in types and is_text:
        value = [] if value == "none" else [p.strip() for p in value.split(",") if p.strip()]
    elif tuple in types and isinstance(value, int | float | Mapping):
        value = [value]
    is_list = tuple in types and isinstance(value, list | tuple)
    parts = list(value) if is_list else [value]
    if types & {int, float} and bool not in types and any(isinstance(p, bool) for p in parts):
        raise ValueError("give a number, not true or false")
    if any(issubclass(kind, Model) and "name" in kind.model_fields for kind in types):
        parts = [{"name": part} if isinstance(part, str) else part for part in parts]
    return parts if is_list else parts[0]


@cache
def _types(annotation: Any) -> frozenset[type]:
    """The types in a union and in the tuples in it."""
    if get_origin(annotation) is Literal:
        return frozenset({str})
    parts = frozenset().union(*(_types(part) for part in get_args(annotation)))
    kind = get_origin(annotation) or annotation
    return parts | {kind} if isinstance(kind, type) else parts


# The network ---------------------------------------------------------------------------------


class SqueezeExcitationConfig(Model):
    """Channel attention (Hu et al. 2017): nowhere, once after the stem, or in blocks."""

    # Where it is: `block` ends the residual path, `addition` follows the sum with the shortcut
    placement: Literal["none", "stem", "block", "addition"] = "none"
    reduction: Count = 16  # channels divided by those of the hidden layer; the paper's
    bias: bool = True  # its two layers have biases
    # Numbers of the blocks that have it, from 1 through all stages; every block unless given
    blocks: tuple[Count, ...] | None = None

    @model_validator(mode="after")
    def _settings_act(self) -> Self:
        if self.placement == "none" and (changed := self.model_dump(exclude_defaults=True)):
            raise ValueError(f"{next(iter(changed))} has no effect while placement is 'none'")
        if self.placement == "stem" and self.blocks:
            raise ValueError("blocks has no effect while placement is 'stem'")
        return self


class ShortcutConfig(Model):
    """The shortcut of a block that changes the shape; that of every other block is the identity."""

    # A convolution, 1×1 unless `kernel` is given (He et al. 2015, option B), or as many channels of
    # zeros on both sides as are missing, without parameters (option A)
    kind: Literal["conv1x1", "zero_pad"] = "conv1x1"
    kernel: tuple[OddKernel, ...] = (1,)  # pixels of its side, odd; one value, or one per stage
    # How a stride of 2 halves the image: as the stride of the convolution (zero_pad: every second
    # pixel), or by 2×2 pooling before it
    pool: Literal["none", "average", "max"] = "none"
    # BatchNorm after the convolution; unless given, in every block but `preact` and `pyramid`
    batch_norm: bool | None = None
    # What it starts from in block `preact`: the first activation's output, or the block's input
    input: Literal["activated", "raw"] = "activated"

    @model_validator(mode="after")
    def _convolution_has_settings(self) -> Self:
        given = {"batch_norm": self.batch_norm is not None, "kernel": set(self.kernel) != {1}}
        for name in [name for name in given if given[name] and self.kind == "zero_pad"]:
            raise ValueError(f"{name} has no effect: kind 'zero_pad' has no convolution")
        return self


class StemPool(Model):
    """Max-pooling at the end of the stem (`torch.nn.MaxPool2d`)."""

    # Pixels of the window's side; that of the ImageNet networks
    kernel: Annotated[int, Field(ge=1, le=2 * SIDE)] = 3
    stride: Annotated[int, Field(ge=1, le=2 * SIDE)] = 2  # pixels from one window to the next
    padding: Natural = 0  # pixels on each side; at most half the kernel

    @model_validator(mode="after")
    def _padding_fits(self) -> Self:
        if self.padding > self.kernel // 2:
            raise ValueError(f"padding = {self.padding}: give at most half the kernel")
        return self


class BlockShape(NamedTuple):
    """One block: what goes into it and what leaves it; a side is both height and width."""

    in_channels: int
    in_side: int
    out_channels: int
    out_side: int
    stride: int
    stage: int = 0  # index of its stage
    attention: bool = False  # it has squeeze-and-excitation

    @property
    def changes_shape(self) -> bool:
        return self.stride != 1 or self.in_channels != self.out_channels

    @property
    def next(self) -> "BlockShape":
        """The block after this one in a stage of one width, and every further one."""
        return self._replace(in_channels=self.out_channels, in_side=self.out_side, stride=1)


def _per_stage(values: tuple, count: int) -> tuple:
    """One value for the network, or one per stage, as one per stage."""
    return values * count if len(values) == 1 else values


Activation = Literal["relu", "leaky_relu"]
ConvKind = Literal["full", "depthwise", "separable"]
PREACTIVATED = ("preact", "pyramid")  # blocks that begin with BatchNorm and add without activation
STEM_KERNELS = {  # of the convolutions of each stem, one after the other
    "conv1x1": (1,),
    "conv2x2": (2,),
    "conv3x3": (3,),
    "conv5x5": (5,),
    "conv7x7": (7,),
    "double_conv3x3": (3, 3),
    "whitening": (2,),
}


class Architecture(Model):
    """The network: stem, stages of blocks, pooled linear head."""

    # The residual block: `basic` and `bottleneck` (He et al. 2015); `preact` (He et al. 2016);
    # `dropout`, which is `basic` with the shortcut computed first and dropout of channels between
    # the convolutions; `pyramid` (Han et al. 2017); `pooled`, a convolution and max-pooling before
    # the residual part, as in ResNet-9
    block: Literal["basic", "bottleneck", "dropout", "preact", "pyramid", "pooled"]
    depths: tuple[Natural, ...]  # blocks of each stage; 0 leaves the stage out
    widths: tuple[Count, ...]  # channels that leave each stage, in block `bottleneck` too
    # Channels that leave each block, one list for each stage, where they grow from block to block
    # (PyramidNet, Han et al. 2017); each list ends with the stage's width
    block_widths: Annotated[tuple[tuple[Count, ...], ...], Field(min_length=1)] | None = None
    # Stride of the first block of each stage; 1 in the first stage and 2 in the others unless given
    strides: tuple[Annotated[int, Field(ge=1, le=2)], ...] | None = None
    # First layer: a convolution of that kernel, two of 3×3, or fixed 2×2 filters that whiten the
    # image's patches
    stem: Literal[
        "conv1x1", "conv2x2", "conv3x3", "conv5x5", "conv7x7", "double_conv3x3", "whitening"
    ] = "conv3x3"
    # Channels of the stem; the first stage's unless given, 24 in stem `whitening`
    stem_width: Count | None = None
    stem_stride: Annotated[int, Field(ge=1, le=2)] = 1  # of the stem's first convolution
    # Pixels on each side; half the kernel unless given, none in stem `whitening`
    stem_padding: Natural | None = None
    stem_pool: StemPool | None = None  # max-pooling after the stem
    expansion: Count = 4  # in block `bottleneck`: output channels divided by the inner ones
    # Activation: one for the network, or that of the stem and then of each stage; leaky_relu has
    # torch's slope of 0.01 below zero
    activation: tuple[Activation, ...] = ("relu",)
    # The 3×3 convolutions of blocks, one for the network or one per stage: over all channels; over
    # each channel by itself (block `bottleneck`); or that, then a 1×1 convolution (Chollet 2016)
    conv_kind: tuple[ConvKind, ...] = ("full",)
    # Pixels of the side of these 3×3 convolutions, odd: one value, or one per stage
    conv_kernel: tuple[OddKernel, ...] = (3,)
    conv_bias: bool = False  # convolutions have a bias
    batch_norm_scale: bool = True  # the weight of BatchNorm is trained; otherwise it stays 1
    zero_init_residual: bool = False  # each block begins as its shortcut (Goyal et al. 2017, 5.1)
    # First weights: torch's own, or convolutions by `kaiming_normal_` with mode `fan_out`
    init: Literal["default", "kaiming_fan_out"] = "default"
    shortcut: ShortcutConfig = ShortcutConfig()  # of blocks that change the shape
    dropout: Rate = 0.0  # probability that a channel (or value) is zeroed, in every block
    dropout_unit: Literal["channels", "values"] = "channels"  # what is zeroed as one
    # Where: before the last 3×3 convolution (block `bottleneck`: before the last convolution), at
    # the end of the residual path, between the addition and the activation that follows it, or
    # after the block's last layer
    dropout_place: Literal["residual", "residual_end", "addition", "output"] = "residual"
    # Side of the windows in which the last map is averaged, one beside the other (`AvgPool2d`); the
    # linear layer takes the mean of each; the whole map unless given
    pool_size: Count | None = None
    head_dropout: Rate = 0.0  # probability that a value is zeroed before the linear layer
    # What is zeroed: the values that the linear layer takes, or those of the map before pooling
    head_dropout_place: Literal["features", "map"] = "features"
    squeeze_excitation: SqueezeExcitationConfig = SqueezeExcitationConfig()  # channel attention
    # Probability of skipping the last block; rises linearly from the first (Huang et al. 2016)
    stochastic_depth: Rate = 0.0
    final_norm: bool = True  # BatchNorm and activation before pooling, in `preact` and `pyramid`
    # Layers without parameters that are modules, and therefore rows of the summary table
    listed_layers: tuple[Literal["stem_relu", "pool"], ...] = ("pool",)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_lists()
        self._check_stem()
        self.check_blocks()
        self._check_additions()
        return self

    def _check_lists(self) -> None:
        stages = len(self.depths)
        for name in ("widths", "strides", "block_widths"):
            values = getattr(self, name)
            if values and len(values) != stages:
                raise ValueError(
                    f"depths has {counted(stages, 'stage')} and {name} {len(values)}; "
                    "give one value per stage"
                )
        if not any(self.depths) or not self.widths:
            raise ValueError("depths needs at least one block, and widths one value per stage")
        if stages > MAX_STAGES:
            raise ValueError(f"networks of more than {MAX_STAGES} stages are not supported")
        widest = max(*self.widths, self.stem_width or 1, *sum(self.block_widths or (), ()))
        if widest > MAX_CHANNELS or max(self.depths) > MAX_BLOCKS:
            raise ValueError(
                f"networks of more than {MAX_CHANNELS:,} channels or {MAX_BLOCKS:,} blocks "
                "in a stage are not supported"
            )
        listed = zip(self.depths, self.widths, self.block_widths or (), strict=False)
        for depth, width, widths in listed:
            if len(widths) != depth or (widths and widths[-1] != width):
                raise ValueError(
                    f"block_widths has {list(widths)} for a stage of {depth} blocks and width "
                    f"{width}; give one value per block, the last of them the stage's width"
                )
        for name, count, what in (
            ("activation", stages + 1, "one for the stem and one per stage"),
            ("conv_kind", stages, "one per stage"),
            ("conv_kernel", stages, "one per stage"),
            ("shortcut.kernel", stages, "one per stage"),
        ):
            given = len(attrgetter(name)(self))
            if given not in (1, count):
                raise ValueError(f"{name} has {given} values; give one, or {what} ({count})")

    def _check_stem(self) -> None:
        if self.stem == "whitening":
            for name in ("stem_width", "stem_padding"):
                if getattr(self, name) is not None:
                    reason = f"stem 'whitening' has {WHITENING_CHANNELS} channels and no padding"
                    raise ValueError(f"{name} has no effect: {reason}")
            if self.stem_stride != 1:
                raise ValueError("stem_stride has no effect: stem 'whitening' has stride 1")
            if self.block in PREACTIVATED:
                raise ValueError(
                    f"stem 'whitening' has a ReLU, and block {self.block!r} a stem without one"
                )
        if min(self.outputs[0][1], self.stem_sides[-1]) < 1:
            raise ValueError(f"the stem leaves nothing of a {SIDE}×{SIDE} image")
        if max(self.outputs[0][1], *self.stem_sides) > 2 * SIDE:
            raise ValueError("stem_padding makes the image more than twice as large")

    def check_blocks(self) -> None:
        """Raise `ValueError` for shapes that the architecture's block cannot have."""
        blocks = [block for stage in self.blocks for block in stage]
        if not self.outputs[-1][1]:
            raise ValueError(f"too many stride-2 stages for a {SIDE}×{SIDE} image")
        if self.pool_size and self.pool_size > (side := self.outputs[-1][1]):
            raise ValueError(f"pool_size = {self.pool_size}: the last map has {side}×{side} pixels")
        if self.block == "bottleneck":
            for block in blocks:
                if block.out_channels % self.expansion:
                    raise ValueError(
                        f"block 'bottleneck' divides its width {block.out_channels} by expansion "
                        f"{self.expansion}, which leaves a remainder"
                    )
        elif self.expansion != 4:
            raise ValueError(f"expansion acts in block 'bottleneck', and block is {self.block!r}")
        elif "depthwise" in self.conv_kind:
            raise ValueError(
                "conv_kind 'depthwise' keeps the channels: it needs block 'bottleneck'; "
                "'separable' adds a 1×1 convolution"
            )
        if self.shortcut.kind == "zero_pad" and any(b.out_channels < b.in_channels for b in blocks):
            raise ValueError("shortcut 'zero_pad' adds channels, and a block here has fewer")
        numbers = self.squeeze_excitation.blocks or (1,)
        if max(numbers) > len(blocks):
            raise ValueError(
                f"squeeze_excitation.blocks names block {max(numbers)} of {len(blocks)}"
            )

    def _check_additions(self) -> None:
        if self.block == "pooled" and self.shortcut != ShortcutConfig():
            raise ValueError("shortcut has no effect: that of block 'pooled' is the identity")
        if self.shortcut.input == "raw" and self.block != "preact":
            raise ValueError(f"shortcut.input acts in block 'preact', and block is {self.block!r}")
        if not self.final_norm and self.block not in PREACTIVATED:
            raise ValueError(
                f"final_norm acts in blocks 'preact' and 'pyramid', and block is {self.block!r}"
            )
        if self.zero_init_residual and not self.batch_norm_scale and self.block != "preact":
            raise ValueError(
                "zero_init_residual begins with a BatchNorm weight of 0, which would stay 0 "
                "without batch_norm_scale"
            )
        if not self.dropout and (self.dropout_unit, self.dropout_place) != ("channels", "residual"):
            raise ValueError("dropout_unit and dropout_place have no effect while dropout is 0")
        if self.dropout_place == "addition" and self.block in PREACTIVATED:
            raise ValueError(
                f"dropout_place 'addition' is 'output' in block {self.block!r}, which adds last"
            )
        if not self.head_dropout and self.head_dropout_place != "features":
            raise ValueError("head_dropout_place has no effect while head_dropout is 0")

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Of the first block of each stage."""
        count = len(self.depths)
        return ((self.strides or (1,)) + (2,) * count)[:count]

    @property
    def activations(self) -> tuple[Activation, ...]:
        """Of the stem and of each stage."""
        return _per_stage(self.activation, len(self.depths) + 1)

    @property
    def conv_kinds(self) -> tuple[ConvKind, ...]:
        """Of each stage."""
        return _per_stage(self.conv_kind, len(self.depths))

    @property
    def conv_kernels(self) -> tuple[int, ...]:
        """Of each stage."""
        return _per_stage(self.conv_kernel, len(self.depths))

    @property
    def shortcut_kernels(self) -> tuple[int, ...]:
        """Of each stage."""
        return _per_stage(self.shortcut.kernel, len(self.depths))

    @property
    def features(self) -> int:
        """Values that the linear layer takes: channels times positions."""
        channels, side = self.outputs[-1]
        return channels * self.positions(side)

    def positions(self, side: int) -> int:
        """Means that pooling leaves of one channel of a map of this height and width."""
        return (side // self.pool_size) ** 2 if self.pool_size else 1

    @property
    def shortcut_norm(self) -> bool:
        """Whether the convolution of a shortcut has a BatchNorm."""
        given = self.shortcut.batch_norm
        return self.block not in PREACTIVATED if given is None else given

    @property
    def stem_sides(self) -> tuple[int, ...]:
        """Height and width of what leaves each of the stem's convolutions."""
        side, sides = SIDE, []
        for number, kernel in enumerate(STEM_KERNELS[self.stem]):
            stride = self.stem_stride if number == 0 else 1
            side = (side + 2 * self.stem_paddings[number] - kernel) // stride + 1
            sides.append(side)
        return tuple(sides)

    @property
    def stem_paddings(self) -> tuple[int, ...]:
        """Of each of the stem's convolutions."""
        if self.stem == "whitening":
            return (0,)
        given, kernels = self.stem_padding, STEM_KERNELS[self.stem]
        return tuple(kernel // 2 if given is None else given for kernel in kernels)

    @property
    def outputs(self) -> tuple[tuple[int, int], ...]:
        """(channels, height and width) of what leaves the stem and each stage."""
        whitening = self.stem == "whitening"
        channels = WHITENING_CHANNELS if whitening else self.stem_width or self.widths[0]
        side = self.stem_sides[-1]
        if self.stem_pool:
            pool = self.stem_pool
            side = (side + 2 * pool.padding - pool.kernel) // pool.stride + 1
        shapes = [(channels, side)]
        for depth, width, stride in zip(self.depths, self.widths, self.stage_strides, strict=True):
            if depth:
                channels = width
                # Max-pooling drops an odd last row; a convolution with padding does not.
                side = side // stride if self.block == "pooled" else -(-side // stride)
            shapes.append((channels, side))
        return tuple(shapes)

    @property
    def blocks(self) -> tuple[tuple[BlockShape, ...], ...]:
        """Every block of each stage."""
        attention = self.squeeze_excitation
        everywhere = attention.placement in ("block", "addition") and attention.blocks is None
        stages, number, (channels, side) = [], 0, self.outputs[0]
        for index, (depth, stride) in enumerate(zip(self.depths, self.stage_strides, strict=True)):
            widths = (
                self.block_widths[index] if self.block_widths else (self.widths[index],) * depth
            )
            stage, out_side = [], self.outputs[index + 1][1]
            for width in widths:
                number += 1
                has_attention = everywhere or number in (attention.blocks or ())
                shape = (channels, side, width, out_side, 1 if stage else stride)
                stage.append(BlockShape(*shape, index, has_attention))
                channels, side = width, out_side
            stages.append(tuple(stage))
        return tuple(stages)


# The optimizer -------------------------------------------------------------------------------


class _Optimizer(Model):
    name: str
    lr: Annotated[float, Field(ge=1e-12, le=1e30)]  # learning rate at its peak
    # Coefficient, as in torch: L2, added to the gradient, unless it is decoupled (adamw)
    weight_decay: NonNegative = 0.0
    # Parameters that decay: all, or only the weights of convolutions and of the linear layer
    decay_on: Literal["all", "weights"] = "all"
    # Multiple of the rate for biases and BatchNorm
    bias_lr_factor: Annotated[float, Field(ge=1e-6, le=10**6)] = 1.0


class Sgd(_Optimizer):
    """Stochastic gradient descent (`torch.optim.SGD`)."""

    name: Literal["sgd"]
    momentum: Rate = 0.0  # share of the velocity that a step keeps
    nesterov: bool = False  # Nesterov momentum

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class _Moments(_Optimizer):
    betas: tuple[Rate, Rate] = (0.9, 0.999)  # decay of the averages of gradient and its square
    eps: Positive = 1e-8  # added to the denominator


class Adam(_Moments):
    """Adam (Kingma & Ba 2014), or AdamW with its decoupled decay (Loshchilov & Hutter 2017)."""

    name: Literal["adam", "adamw"]


class RAdam(_Moments):
    """Adam with a rectified first phase (Liu et al. 2019; `torch.optim.RAdam`)."""

    name: Literal["radam"]
    decoupled_weight_decay: bool = False  # as in AdamW; otherwise L2


class NAdam(_Moments):
    """Adam with Nesterov momentum (Dozat 2016; `torch.optim.NAdam`)."""

    name: Literal["nadam"]
    momentum_decay: NonNegative = 0.004  # how fast the momentum rises to its full value
    decoupled_weight_decay: bool = False  # as in AdamW; otherwise L2


class Adamax(_Moments):
    """Adam with the largest gradient in place of the square (Kingma & Ba 2014, section 7)."""

    name: Literal["adamax"]
    betas: tuple[Rate, Rate] = (0.9, 0.999)  # decay of the gradient's average and of its maximum
    eps: Positive = 1e-8  # added to the size of each gradient before the maximum is taken


class Adadelta(_Optimizer):
    """Steps as large as earlier steps were (Zeiler 2012; `torch.optim.Adadelta`)."""

    name: Literal["adadelta"]
    rho: Rate = 0.9  # decay of the averages of squared gradients and steps
    eps: Positive = 1e-6  # added to both averages


class Adagrad(_Optimizer):
    """Gradients divided by the root of their sum of squares (Duchi et al. 2011)."""

    name: Literal["adagrad"]
    lr_decay: NonNegative = 0.0  # the rate is divided by 1 + this times the steps done
    initial_accumulator_value: NonNegative = 0.0  # first value of the sum of squares
    eps: Positive = 1e-10  # added to the denominator


class RMSprop(_Optimizer):
    """Gradients divided by the root of their mean square (`torch.optim.RMSprop`)."""

    name: Literal["rmsprop"]
    alpha: Rate = 0.99  # decay of the average of squared gradients
    eps: Positive = 1e-8  # added to the denominator
    momentum: Rate = 0.0  # share of the velocity that a step keeps
    centered: bool = False  # the squared mean gradient is subtracted from the mean square


Optimizer = Annotated[
    Sgd | Adam | RAdam | NAdam | Adamax | Adadelta | Adagrad | RMSprop,
    Field(discriminator="name"),
]


# The schedule of the learning rate -----------------------------------------------------------


class _Schedule(Model):
    name: str
    interval: Literal["epoch", "step"] = "epoch"  # when the rate changes
    warmup_epochs: NonNegative = 0.0  # epochs in which the rate rises linearly to its peak
    warmup_start: UnitInterval = 0.1  # share of the peak at which the warm-up starts


class Constant(_Schedule):
    """The peak, after the warm-up."""

    name: Literal["constant"]


class Cosine(_Schedule):
    """Warm-up, hold, then half a cosine (Loshchilov & Hutter 2016) from the peak to min_lr."""

    name: Literal["cosine"]
    hold_epochs: NonNegative = 0.0  # epochs at the peak, after the warm-up
    # Length of the half cosine; null: to the end, but at least an epoch
    period_epochs: Annotated[float, Field(ge=0.001, le=10**9)] | None = None
    min_lr: NonNegative = 0.0  # learning rate at its end
    # After a period: the rate stays at min_lr, begins anew at the peak (warm restarts,
    # `CosineAnnealingWarmRestarts`), or rises along the cosine (`CosineAnnealingLR` beyond T_max)
    after_period: Literal["stay", "restart", "rise"] = "stay"
    period_factor: Count = 1  # with restarts, each period is so many times as long as the last

    @model_validator(mode="after")
    def _period_acts(self) -> Self:
        if self.after_period != "stay" and self.period_epochs is None:
            raise ValueError(f"after_period {self.after_period!r} needs period_epochs")
        if self.after_period != "restart" and self.period_factor != 1:
            raise ValueError("period_factor needs after_period 'restart'")
        return self


class StepDecay(_Schedule):
    """The rate is multiplied by gamma at each milestone (`MultiStepLR`)."""

    name: Literal["step", "multistep"]  # both mean the same; `step` is what is recorded
    milestones: tuple[Count, ...]  # epochs after which the rate drops
    gamma: PositiveUnit = 0.1  # factor at each milestone

    @field_validator("name")
    @classmethod
    def _one_name(cls, name: str) -> str:
        return "step"


class Exponential(_Schedule):
    """The rate is multiplied by gamma in each period after the warm-up (`ExponentialLR`).

    With the interval `step` it falls continuously.
    """

    name: Literal["exponential"]
    gamma: PositiveUnit  # factor of each period
    every_epochs: Count = 1  # length of the period; above 1, with the interval `epoch`, `StepLR`


class Plateau(_Schedule):
    """The rate drops when the metric has stopped improving (`ReduceLROnPlateau`).

    It follows the history of the run, from the end of the warm-up, and never the test set.
    """

    name: Literal["plateau"]
    # Column of the history: an accuracy should rise, a loss fall; a validation metric needs holdout
    metric: Literal["train_loss", "holdout_loss", "holdout_accuracy"] = "train_loss"
    factor: OpenUnit = 0.1  # of the rate at each drop
    patience: Natural = 10  # epochs without improvement that are tolerated
    threshold: NonNegative = 1e-4  # smallest change that counts as an improvement
    threshold_mode: Literal["rel", "abs"] = "rel"  # threshold is a share of the best, or a value
    cooldown: Natural = 0  # epochs after a drop that are not counted
    min_lr: NonNegative = 0.0  # the rate does not drop below


class OneCycle(Model):
    """Smith's one-cycle rate as torch draws it, step by step; momentum stays constant."""

    name: Literal["one_cycle"]
    pct_start: OpenUnit = 0.3  # share of the run in which the rate rises
    div_factor: AtLeastOne = 25.0  # peak divided by the first rate
    final_div_factor: AtLeastOne = 1e4  # first rate divided by the last
    anneal: Literal["cosine", "linear"] = "cosine"  # shape of both phases


Schedule = Annotated[
    Constant | Cosine | StepDecay | Exponential | Plateau | OneCycle, Field(discriminator="name")
]


# Additions to the optimizer ------------------------------------------------------------------


class Lookahead(Model):
    """Every k steps slow weights move towards the fast ones, which restart there (Zhang 2019)."""

    k: Count = 5  # steps between two moves; the paper's
    alpha: PositiveUnit = 0.5  # share of the way; the paper's


class Clip(Model):
    """Gradients are clipped."""

    by: Literal["value", "norm"]  # each to ±limit, or all to that joint L2 norm
    limit: Annotated[float, Field(ge=1e-9, le=1e30)]  # the largest value or norm


class Ema(Model):
    """Exponential moving average of the weights, which is then evaluated and kept."""

    # Share of the average that a step keeps; after n steps at most (1 + n) / (10 + n): 0.99 from
    # step 890 on, 0.999 from step 8,990 on
    decay: OpenUnit = 0.999


class Sam(Model):
    """Sharpness-aware minimisation: gradients at the worst point nearby (Foret et al. 2020)."""

    rho: Annotated[float, Field(ge=1e-30, le=1000)] = 0.05  # L2 distance of that point; the paper's


# Augmentations -------------------------------------------------------------------------------


def _require_rising(model: Model, *names: str) -> None:
    for name in names:
        low, high = getattr(model, name)
        if low > high:
            raise ValueError(f"{name} = ({low:g}, {high:g}): give the lower bound first")


class Sometimes(Model):
    """An augmentation that acts on each image with a probability."""

    probability: UnitInterval = 1.0  # of an image


class Crop(Sometimes):
    """A window of the image's own size after padding, both offsets uniform (`RandomCrop`)."""

    name: Literal["crop"]
    padding: Annotated[int, Field(ge=1, le=31)] = 4  # pixels on each side (He et al. 2015, 4.2)
    padding_mode: Literal["constant", "reflect"] = "constant"  # black, or the image mirrored


class Flip(Model):
    """Left and right exchanged (`RandomHorizontalFlip`)."""

    name: Literal["flip"]
    probability: UnitInterval = 0.5  # of an image in an epoch
    # Each image is flipped in every other epoch; a draw decides once which ones begin (Jordan 2024)
    alternate: bool = False

    @model_validator(mode="after")
    def _flips_half(self) -> Self:
        if self.alternate and self.probability != 0.5:
            raise ValueError("alternate flips each image every second time; omit probability")
        return self


class ColorJitter(Sometimes):
    """Brightness, contrast, saturation, hue by random factors in random order (`ColorJitter`)."""

    name: Literal["color_jitter"]
    brightness: Strength = 0.2  # factor uniform on 1 ± this
    contrast: Strength = 0.2  # factor uniform on 1 ± this
    saturation: Strength = 0.2  # factor uniform on 1 ± this
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # shift uniform on ± this share of the circle

    @model_validator(mode="after")
    def _acts(self) -> Self:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("all four strengths are 0; omit color_jitter instead")
        return self


class Rotation(Sometimes):
    """Rotation by an angle uniform on ±degrees, nearest pixel, black outside (`RandomRotation`)."""

    name: Literal["rotation"]
    degrees: Annotated[float, Field(gt=0, le=180)] = 15.0  # largest angle


class Affine(Sometimes):
    """Rotation, translation, scale and shear in one, nearest pixel, black outside (`RandomAffine`).

    `{name: affine}` alone only rotates; `degrees: 0` leaves the rotation out.
    """

    name: Literal["affine"]
    degrees: Annotated[float, Field(ge=0, le=180)] = 15.0  # largest angle
    # Largest translation to the right and down, as a share of width and height
    translate: tuple[UnitInterval, UnitInterval] = (0.0, 0.0)
    scale: tuple[Ratio, Ratio] = (1.0, 1.0)  # smallest and largest factor of size
    # Largest shear along x and along y, in degrees
    shear: tuple[Shear, Shear] = (0.0, 0.0)

    @model_validator(mode="after")
    def _acts(self) -> Self:
        _require_rising(self, "scale")
        if not (self.degrees or any(self.translate) or any(self.shear)) and self.scale == (1, 1):
            raise ValueError("all settings leave the image as it is; omit affine instead")
        return self


class Perspective(Sometimes):
    """The image seen from a random point, bilinear, black outside.

    After torchvision's `RandomPerspective`, which darkens pixels at the border.
    """

    name: Literal["perspective"]
    probability: UnitInterval = 0.5  # of an image; torchvision's default
    # How far a corner may move towards the centre, as a share of the way; torchvision's default
    distortion_scale: PositiveUnit = 0.5


class GaussianBlur(Sometimes):
    """A blur of random width, the border mirrored (`GaussianBlur`; Chen et al. 2020, A)."""

    name: Literal["gaussian_blur"]
    # Pixels of the filter, an odd number; the paper's tenth of the image
    kernel_size: Annotated[int, Field(ge=3, le=63), AfterValidator(_odd)] = 3
    sigma: tuple[Ratio, Ratio] = (0.1, 2.0)  # pixels, uniform between; the paper's

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        _require_rising(self, "sigma")
        return self


class Grayscale(Sometimes):
    """All three channels the grey level (`RandomGrayscale`)."""

    name: Literal["grayscale"]
    probability: UnitInterval = 0.5  # of an image; 0.1 is torchvision's default


class AutoAugment(Sometimes):
    """One of the 25 learned pairs of operations for CIFAR-10 (Cubuk et al. 2018; `AutoAugment`)."""

    name: Literal["auto_augment"]


class RandAugment(Sometimes):
    """Random operations of one magnitude (Cubuk et al. 2019; `RandAugment`)."""

    name: Literal["rand_augment"]
    num_ops: Annotated[int, Field(ge=1, le=100)] = 2  # operations per image
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9  # of bins 0 to 30


class TrivialAugment(Sometimes):
    """One operation of a random magnitude (Müller & Hutter 2021; `TrivialAugmentWide`)."""

    name: Literal["trivial_augment"]


class Cutout(Model):
    """A grey square, its centre uniform, cut off at the border (DeVries & Taylor 2017)."""

    name: Literal["cutout"]
    size: Count = 16  # pixels; the paper's for CIFAR-10
    probability: UnitInterval = 1.0  # of an image


class RandomErasing(Model):
    """A black rectangle of random area and shape (Zhong et al. 2017; `RandomErasing`)."""

    name: Literal["random_erasing"]
    probability: UnitInterval = 0.5  # of an image
    scale: tuple[UnitInterval, UnitInterval] = (0.02, 0.33)  # area, as a share of the image's
    ratio: tuple[Ratio, Ratio] = (0.3, 3.3)  # height divided by width

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        _require_rising(self, "scale", "ratio")
        return self


class _Mix(Model):
    name: str
    # The share of each image is drawn from Beta(alpha, alpha)
    alpha: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    probability: UnitInterval = 1.0  # that an image is mixed


class MixUp(_Mix):
    """Two images and their labels blended (Zhang et al. 2017)."""

    name: Literal["mixup"]


class CutMix(_Mix):
    """A rectangle of another image, and labels by area (Yun et al. 2019)."""

    name: Literal["cutmix"]


_Augment = (
    Crop
    | Flip
    | ColorJitter
    | Rotation
    | Affine
    | Perspective
    | GaussianBlur
    | Grayscale
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
    choices: tuple[Augment, ...]  # two or more augmentations

    @model_validator(mode="after")
    def _has_choice(self) -> Self:
        if len(self.choices) < 2:
            raise ValueError("one_of needs at least two choices")
        return self


AugmentStep = Annotated[_Augment | OneOf, Field(discriminator="name")]


class Augmentations(Model):
    """A list of augmentations by itself, as `augment.preview` takes it."""

    augment: tuple[AugmentStep, ...]


# The recipe ----------------------------------------------------------------------------------


class Normalization(Model):
    """Mean and standard deviation of each channel, of levels between 0 and 1."""

    mean: tuple[Level, Level, Level]  # subtracted
    std: tuple[Deviation, Deviation, Deviation]  # then divided by


def single_augmentations(steps: Iterable[AugmentStep]) -> list[Augment]:
    """The augmentations of these steps, in place of `one_of` those it chooses from."""
    return [a for step in steps for a in (step.choices if isinstance(step, OneOf) else (step,))]


class Recipe(Model):
    """Everything about training that is not the network."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)]  # passes over the training images
    batch_size: Count  # images per step
    optimizer: Optimizer  # what moves the weights
    schedule: Schedule  # how the learning rate changes
    lookahead: Lookahead | None = None  # slow weights around the optimizer
    clip: Clip | None = None  # bound on the gradients
    sam: Sam | None = None  # sharpness-aware minimisation; doubles the time of a step
    ema: Ema | None = None  # average of the weights
    label_smoothing: Rate = 0.0  # share of the target spread evenly over all classes
    augment: tuple[AugmentStep, ...] = ()  # augmentations, applied in this order
    # Mean and standard deviation that images are normalised by: of all training pixels; with the
    # mean over the images of their own deviations (0.2023, 0.1994, 0.2010, which many repositories
    # have); those of ImageNet; no normalisation; or a mapping with both
    normalize: Literal["dataset", "per_image_std", "imagenet", "none"] | Normalization = "dataset"
    holdout: Natural = 0  # training images kept for validation
    # Weights kept: the last epoch's, or those of the epoch best on validation or on the test set
    select: Literal["last", "best_holdout", "best_test"] = "last"

    @property
    def augmentations(self) -> list[str]:
        """The names of all augmentations, of `one_of` those it chooses from."""
        return [single.name for single in single_augmentations(self.augment)]

    @field_validator("normalize", mode="before")
    @classmethod
    def _read_values(cls, value: Any) -> Any:
        return Normalization.model_validate(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _validation_has_data(self) -> Self:
        if self.holdout_user and not self.holdout:
            raise ValueError(f"{self.holdout_user} needs holdout above 0")
        return self

    @property
    def holdout_user(self) -> str:
        """The setting that looks at held-out images; empty where none does."""
        if self.select == "best_holdout":
            return "select 'best_holdout'"
        metric = getattr(self.schedule, "metric", "")
        return f"schedule.metric {metric!r}" if metric.startswith("holdout") else ""


def models_in(annotation: Any) -> list[type[Model]]:
    """The models that a field of this annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def block_names() -> tuple[str, ...]:
    """The kinds of block that an architecture may have."""
    return get_args(Architecture.model_fields["block"].annotation)


def tagged_models(*unions: Any) -> dict[str, type[Model]]:
    """The models of these unions (default: all) by each `name` that chooses them."""
    unions = unions or (Optimizer, Schedule, AugmentStep)
    kinds = [kind for union in unions for kind in models_in(union)]
    return {name: kind for kind in kinds for name in get_args(kind.model_fields["name"].annotation)}
