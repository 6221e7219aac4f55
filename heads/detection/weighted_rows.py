"""Weighted sums of rows of a table that give the same bits each time, on devices too.

Letters in shapes: T rows of the table, C columns, N sums, k rows of each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class WeightedRows(torch.autograd.Function):
    """``(table[index] * weight[..., None]).sum(1)``; the gradient is that of the table.

    Its gradient adds by ``index_put_``, which torch's deterministic mode makes one order of additions.
    Beside the results it takes memory for ``[N, C]`` numbers in each direction, whatever k is.
    """

    @staticmethod
    def forward(ctx, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Sum rows.

        Args:
            table: ``[T, C]`` float32.
            index: ``[N, k]`` int64.
            weight: ``[N, k]`` float32.

        Returns:
            ``[N, C]`` float32.
        """
        ctx.save_for_backward(index, weight)
        ctx.rows = table.shape[0]
        total = table.new_zeros((index.shape[0], table.shape[1]))
        for place in range(index.shape[1]):
            total.addcmul_(table.index_select(0, index[:, place]), weight[:, place, None])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Give each row of the table its share of the gradients of the sums it is part of."""
        index, weight = ctx.saved_tensors
        table = gradient.new_zeros((ctx.rows, gradient.shape[1]))
        for place in range(index.shape[1]):
            table.index_put_((index[:, place],), gradient * weight[:, place, None], accumulate=True)
        return table, None, None
