"""Stateless modules that torch.nn lacks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FlattenSample", "SumPool2d"]


class SumPool2d(nn.Module):
    """Sum over windows of [..., channel, y, x] (nir.SumPool2d); padding with zeros.

    Args:
        kernel_size: window (y, x) or one number.
        stride: step (y, x); None: the window.
        padding: rows and columns added on each side.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Pool one step."""
        return functional.avg_pool2d(
            x, self.kernel_size, self.stride, self.padding, count_include_pad=True, divisor_override=1
        )

    def extra_repr(self) -> str:
        """Options, as torch prints its own layers."""
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}"


class FlattenSample(nn.Module):
    """Flatten dimensions of one sample, whatever axes come before it (nir.Flatten).

    Args:
        start_dim: first dimension of the sample to merge, counted without the batch.
        end_dim: last one.
        rank: number of dimensions of a sample.
    """

    def __init__(self, start_dim: int, end_dim: int, rank: int) -> None:
        super().__init__()
        self.start_dim, self.end_dim, self.rank = start_dim, end_dim, rank

    def forward(self, x: Tensor) -> Tensor:
        """Flatten one step."""
        first = self.start_dim - self.rank if self.start_dim >= 0 else self.start_dim
        last = self.end_dim - self.rank if self.end_dim >= 0 else self.end_dim
        return x.flatten(first, last)

    def extra_repr(self) -> str:
        """Options, as torch prints its own layers."""
        return f"{self.start_dim}, {self.end_dim}, rank={self.rank}"
