"""Single operations on a batch of images, each image with its own parameter.

Every operation takes uint8 images (N, 3, H, W) on any device and one value per image (N,), and
returns new uint8 images of the same shape. Values may be on the CPU; nothing here waits for the
device or draws a random number. For equal parameters each operation is the one of its name in
`torchvision.transforms.v2.functional`, on the CPU bit for bit (tests/augment/test_image_ops.py);
only for images of odd size one pixel in 50,000 of a shear, half way between two, differs.

Speed decides some forms: on the CPU, comparisons, `where` and direct conversions from float to
uint8 take several times as long as arithmetic.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values drawn on the CPU, on the device: on CUDA without waiting for the work before it.

    On MPS such a copy may read memory that has been given back already (pytorch issue 139550).
    """
    return values.to(device, non_blocking=device.type == "cuda")


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Every level times the factor."""
    return _to_uint8(images.to(torch.float32).mul_(_per_image(factor, images)))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from (factor above 1) or towards the image's mean grey level."""
    image = images.to(torch.float32)
    grey = _grey(image)
    return _blended(image, grey.copy_(grey.mean((1, 2, 3), keepdim=True)), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Away from (factor above 1) or towards the image in grey."""
    image = images.to(torch.float32)
    return _blended(image, _grey(image), factor)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """The hue shifted by a fraction of the colour circle, from -0.5 to 0.5 (Smith 1978)."""
    image = images.to(torch.float32).mul_(1 / 255)
    red, green, blue = image.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    span = high - torch.minimum(torch.minimum(red, green), blue)
    strength = span / high.clamp(min=1 / 512)  # any bound below 1 / 255 only avoids 0 / 0
    span.clamp_(min=1 / 512)
    red, green, blue = ((high - channel).div_(span) for channel in (red, green, blue))  # 0: highest
    not_red, not_green = red.ceil(), green.ceil()
    angle = (blue - green).mul_(1 - not_red)
    angle += (red + 2).sub_(blue).mul_(1 - not_green).mul_(not_red)
    angle += (green + 4).sub_(red).mul_(not_green).mul_(not_red)
    angle = angle.mul_(1 / 6).add_(1).frac_().add_(_per_image(shift, images)[:, 0])
    angle = angle.sub_(angle.floor()).mul_(6)
    sector = angle.floor()
    part = angle.sub_(sector).mul_(strength)
    rest = 1 - strength
    full, low = _to_uint8_top(high), _to_uint8_top(rest * high)
    falling, rising = (
        _to_uint8_top((1 - part).mul_(high)),
        _to_uint8_top(part.add_(rest).mul_(high)),
    )
    # Round the circle in six sectors red goes through the first six of these levels; blue begins
    # two and green four places further. An angle rounded up to the full circle is in sector 6.
    levels = (full, falling, low, low, rising, full, full, falling, low, low, rising)
    turn = torch.arange(0, 12, 4, device=images.device).remainder_(6)[:, None, None]  # 0, 4, 2
    return torch.stack(levels, 1).gather(1, sector.long()[:, None] + turn)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Away from (factor above 1) or towards the smoothed image; the border does not change."""
    height, width = images.shape[2:]
    # Over the whole batch as one line, where shifts are contiguous: nonsense at the borders only.
    line = images.to(torch.int16).flatten()
    rows = line[: -2 * width] + line[width:-width] + line[2 * width :]
    middle = slice(width + 1, -width - 1)
    total = (rows[:-2] + rows[1:-1] + rows[2:]).add_(line[middle], alpha=4)
    image = images.to(torch.float32)
    change = torch.zeros_like(image)
    smooth = change.flatten()[middle].copy_(total)
    smooth.mul_(1 / 13).round_().sub_(image.flatten()[middle])  # 1s about a 5: Pillow's SMOOTH
    inner = F.pad(torch.ones(height - 2, width - 2, device=images.device), (1, 1, 1, 1))
    return _to_uint8(image.addcmul_(change.mul_(inner), _per_image(1 - factor, images)))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest bits of every level, 0 to 8 of them; the others become 0."""
    return images & _per_image(256 - 2 ** (8 - bits.long()), images, torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Levels of at least the threshold, 0 to 255, inverted: 255 minus the level."""
    first = _per_image(threshold.to(torch.float32).ceil(), images, torch.int16)
    below = (images.to(torch.int16).sub_(first) >> 8).to(torch.uint8)  # 255 below, otherwise 0
    return (~images).bitwise_xor_(below)


def invert(images: Tensor) -> Tensor:
    """Every level inverted: 255 minus the level."""
    return ~images


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched to 0 to 255; a channel of one level does not change."""
    low = images.amin((2, 3), keepdim=True).to(torch.float32)
    span = images.amax((2, 3), keepdim=True).to(torch.float32) - low
    flat = span == 0
    scale = torch.where(flat, 1.0, span * (1 / 255))
    return _to_uint8(images.to(torch.float32).sub_(torch.where(flat, 0.0, low)).div_(scale))


def equalize(images: Tensor) -> Tensor:
    """Each channel's levels spread evenly over its pixels, as Pillow does it."""
    count, channels, height, width = images.shape
    flat = images.flatten(2).long()
    one = torch.ones((), dtype=torch.int32, device=images.device)
    histogram = torch.zeros((count, channels, 256), dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, flat, one.expand(flat.shape))
    up_to = histogram.cumsum(2, dtype=torch.int32)
    last = histogram.gather(2, images.amax((2, 3))[..., None].long())
    step = (height * width - last).div_(255, rounding_mode="floor")
    # In whole numbers below 2^24 the float division gives the same floor, and is much faster.
    table = up_to.sub_(histogram).add_(step // 2).to(torch.float32).div_(step.clamp(min=1))
    table = table.floor_().clamp_(max=255)
    levels = torch.arange(256, dtype=torch.float32, device=images.device)
    table = torch.where(step == 0, levels, table).to(torch.uint8)
    return table.gather(2, flat).view_as(images)


def affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Every pixel from where the matrix (N, 2, 3) maps it: nearest pixel, black outside.

    The matrix acts on (x, y, 1) in pixels from the image's centre, x to the right, y down.
    """
    count, _, height, width = images.shape
    half = torch.tensor([width / 2, height / 2])
    theta = to_device(matrix.to(torch.float32).transpose(1, 2) / half, images.device)
    coordinates = _centred_coordinates(height, width, images.device)
    grid = coordinates.expand(count, -1, -1).bmm(theta).view(count, height, width, 2)
    image = images.to(torch.float32)
    return _to_uint8(
        F.grid_sample(image, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    )


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotated anticlockwise about the centre."""
    return affine(images, rotation_matrix(degrees))


def rotation_matrix(degrees: Tensor) -> Tensor:
    """(N, 2, 3) float64 for `affine`: a rotation anticlockwise about the centre."""
    angle = degrees.to(torch.float64).deg2rad()
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros_like(cos)
    return torch.stack((cos, -sin, zero, sin, cos, zero), -1).view(-1, 2, 3)


def affine_matrix(
    degrees: Tensor, right: Tensor, down: Tensor, scale: Tensor, shear_x: Tensor, shear_y: Tensor
) -> Tensor:
    """(N, 2, 3) float64 for `affine`: the one of torchvision's `affine`, about the centre.

    Args:
        degrees: angle of the rotation, clockwise.
        right: translation in pixels.
        down: translation in pixels.
        scale: factor of size.
        shear_x: angle of the shear along x, in degrees.
        shear_y: angle of the shear along y, in degrees.
    """
    angle, x, y = (value.to(torch.float64).deg2rad() for value in (degrees, shear_x, shear_y))
    # The inverse of rotation × shear along y × shear along x, whose determinant is 1.
    a = (angle - y).cos() / y.cos()
    c = (angle - y).sin() / y.cos()
    b = -a * x.tan() - angle.sin()
    d = -c * x.tan() + angle.cos()
    linear = torch.stack((d, -b, -c, a), -1).view(-1, 2, 2) / scale.view(-1, 1, 1)
    shift = linear @ -torch.stack((right, down), -1).to(torch.float64)[..., None]
    return torch.cat((linear, shift), -1)


def perspective(images: Tensor, corners: Tensor) -> Tensor:
    """Bilinear, black outside: each corner of the image moves to one of `corners`.

    `corners` (N, 4, 2) int64 are (x, y) in pixels: top left, top right, bottom right, bottom left.
    """
    count, _, height, width = images.shape
    right, bottom = width - 1, height - 1
    source = torch.tensor([[0, 0], [right, 0], [right, bottom], [0, bottom]], dtype=torch.float64)
    target = torch.cat((corners.to(torch.float64), torch.ones(count, 4, 1)), -1)  # (x, y, 1)
    # Eight equations for the matrix that maps each target to its source, its last entry 1.
    equations = torch.zeros(count, 4, 2, 8, dtype=torch.float64)
    equations[:, :, 0, :3] = equations[:, :, 1, 3:6] = target
    equations[..., 6:] = -source[:, :, None] * target[:, :, None, :2]
    sides = source.flatten().expand(count, -1)[..., None]
    entries = torch.linalg.lstsq(equations.view(count, 8, 8), sides, driver="gels").solution
    entries = torch.cat((entries[..., 0], torch.ones(count, 1)), 1).to(torch.float32)
    matrix = entries.view(count, 3, 3).transpose(1, 2) / torch.tensor([width / 2, height / 2, 1])
    # Pixel centres from the corner of the image, at half pixels.
    coordinates = _centred_coordinates(height, width, images.device)
    coordinates[..., 0] += width / 2
    coordinates[..., 1] += height / 2
    mapped = coordinates.expand(count, -1, -1).bmm(to_device(matrix, images.device))
    grid = (mapped[..., :2] / mapped[..., 2:] - 1).view(count, height, width, 2)
    return _to_uint8(F.grid_sample(images.to(torch.float32), grid, align_corners=False).round_())


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Each image under a filter of its own width `sigma` in pixels; the border is mirrored."""
    height, width = images.shape[2:]
    reach = (kernel_size - 1) / (2 * 2**0.5)
    line = torch.linspace(-reach, reach, kernel_size) / sigma.to(torch.float32)[:, None]
    kernel = line.square().neg().softmax(1)  # (N, kernel_size)
    kernel = to_device(kernel[:, :, None] * kernel[:, None], images.device)
    padded = F.pad(images.to(torch.float32), (kernel_size // 2,) * 4, mode="reflect")
    blurred = torch.zeros_like(images, dtype=torch.float32)
    for row in range(kernel_size):
        for column in range(kernel_size):
            part = padded[:, :, row : row + height, column : column + width]
            blurred.addcmul_(part, kernel[:, row, column].view(-1, 1, 1, 1))
    return _to_uint8(blurred.round_())


def grayscale(images: Tensor) -> Tensor:
    """The grey level in all three channels."""
    return _to_uint8(_grey(images.to(torch.float32))).expand(images.shape).contiguous()


def shear_x_matrix(slope: Tensor, height: int) -> Tensor:
    """(N, 2, 3) float64 for `affine`: rows move, the top edge does not (as in AutoAugment)."""
    return _identity_plus({1: slope, 2: slope * (height / 2)}, slope)


def shear_y_matrix(slope: Tensor, width: int) -> Tensor:
    """(N, 2, 3) float64 for `affine`: columns move, the left edge does not."""
    return _identity_plus({3: slope, 5: slope * (width / 2)}, slope)


def translation_matrix(right: Tensor, down: Tensor) -> Tensor:
    """(N, 2, 3) float64 for `affine`: a translation by pixels."""
    return _identity_plus({2: -right, 5: -down}, right)


def _identity_plus(entries: dict[int, Tensor], like: Tensor) -> Tensor:
    matrix = torch.zeros(len(like), 6, dtype=torch.float64)
    matrix[:, ::4] = 1
    for place, value in entries.items():
        matrix[:, place] = value
    return matrix.view(-1, 2, 3)


def window(images: Tensor, top: Tensor, left: Tensor, padding: int, mode: str) -> Tensor:
    """The window of the image's size at (top, left), 0 to 2 padding, of the padded image.

    `mode` is "constant" for a black border or "reflect" for the image mirrored at its border pixel.
    """
    count, channels, height, width = images.shape
    if mode == "reflect":
        rows = _reflected(height, padding, images.device)
        columns = _reflected(width, padding, images.device)
        padded = images.index_select(2, rows).index_select(3, columns)
    else:
        padded = F.pad(images, (padding,) * 4)
    wide = width + 2 * padding
    corner = to_device(top * wide + left, images.device)
    across = torch.arange(width, device=images.device)
    down = torch.arange(0, height * wide, wide, device=images.device)
    coordinates = (down[:, None] + across).view(1, 1, height * width) + corner[:, None, None]
    shifted = padded.flatten(2).gather(2, coordinates.expand(-1, channels, -1))
    return shifted.view(count, channels, height, width)


def flip(images: Tensor, flip_mask: Tensor) -> Tensor:
    """Mirrored left to right where `flip_mask` (N,) bool is true."""
    return replace(images, images.flip(3), flip_mask)


def replace(images: Tensor, others: Tensor, acts: Tensor) -> Tensor:
    """The other image where `acts` (N,) bool is true, the image itself elsewhere."""
    mask = to_device(_mask(acts), images.device)[:, None, None, None]
    return _select(images, others, mask)


def erase(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    color: tuple[int, int, int],
) -> Tensor:
    """A rectangle in one colour; the part outside the image is cut off."""
    fill = _color(color, images.device).expand(images.shape[1:]).contiguous()
    return _select(images, fill, _rectangle(images, top, left, height, width))


def paste(
    images: Tensor, others: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """A rectangle of the other images pasted over these."""
    return _select(images, others, _rectangle(images, top, left, height, width))


def blend(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """`share` of the image plus the rest of the other, rounded to the nearest level."""
    mixed = images.to(torch.float32).mul_(_per_image(share, images))
    mixed.addcmul_(others.to(torch.float32), _per_image(1 - share, images))
    return _to_uint8(mixed.round_())


def _per_image(values: Tensor, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """One value per image as (N, 1, 1, 1) on the images' device."""
    values = values.to(dtype).view(-1, 1, 1, 1)  # before the move: not every device has float64
    return to_device(values, images.device)


def _to_uint8(values: Tensor) -> Tensor:
    """Whole levels 0 to 255, the fraction cut off; by way of int16, which halves the time."""
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _to_uint8_top(values: Tensor) -> Tensor:
    """Values 0 to 1 as levels; 255.999 and not 256 so that 1 is 255, as in torchvision."""
    return _to_uint8(values.clamp(0, 1).mul_(255.999))


def _grey(image: Tensor) -> Tensor:
    """(N, 1, H, W) whole grey levels of float32 levels, the fraction cut off (ITU-R 601-2)."""
    red, green, blue = image.split(1, 1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _blended(image: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor × image + (1 - factor) × other as levels; the image's own storage is used."""
    mixed = image.mul_(_per_image(factor, image))
    # Multiplied and added with one rounding, like torchvision's `add_` with its alpha.
    return _to_uint8(mixed.addcmul_(other, _per_image(1 - factor, image)))


def _centred_coordinates(height: int, width: int, device: torch.device) -> Tensor:
    """(1, H × W, 3): every pixel as (x, y, 1) from the centre."""
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=device)
    coordinates = torch.ones(height, width, 3, device=device)
    coordinates[..., 0] = x
    coordinates[..., 1] = y[:, None]
    return coordinates.view(1, height * width, 3)


def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    coordinates = torch.arange(-padding, size + padding, device=device).abs()
    return size - 1 - (size - 1 - coordinates).abs()


def _mask(where: Tensor) -> Tensor:
    """uint8 of all bits where true: bit operations are far faster than `torch.where`."""
    return where.to(torch.uint8).neg_()


def _select(images: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """The others where the mask has all bits, the images elsewhere."""
    return (images ^ others).bitwise_and_(mask).bitwise_xor_(images)


@cache
def _color(color: tuple[int, int, int], device: torch.device) -> Tensor:
    """uint8 (3, 1, 1), copied to the device once."""
    return to_device(torch.tensor(color, dtype=torch.uint8)[:, None, None], device)


def _rectangle(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Mask (N, 1, H, W) of the pixels inside, on the device of the images."""
    rows = torch.arange(images.shape[2])
    columns = torch.arange(images.shape[3])
    tall = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    wide = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    tall, wide = (to_device(_mask(inside), images.device) for inside in (tall, wide))
    return tall[:, None, :, None] & wide[:, None, None, :]
