"""Check the shapes of input images."""

from __future__ import annotations

from paddle import Tensor

__all__ = ["check_image"]


def check_image(x: Tensor, *, multiple: int = 32) -> None:
    """Check that height and width are known and multiples of ``multiple``.

    Args:
        x: Images ``[N, C, H, W]``.
        multiple: Divisor of height and width, in pixels.

    Raises:
        ValueError: The shape is not allowed; the message names the shape and what is allowed.
    """
    shape = list(x.shape)
    if len(shape) != 4:
        raise ValueError(f"The network takes [N, C, H, W], got a tensor of shape {shape}.")
    if not all(isinstance(size, int) and size > 0 for size in shape[2:]):  # dynamic at export: -1, or a tensor
        raise ValueError("Height and width must be known at export: give InputSpec([None, 3, 256, 192]), for instance.")
    if shape[2] % multiple or shape[3] % multiple:
        raise ValueError(f"Height and width must be multiples of {multiple}, got {shape[2]}x{shape[3]}.")
