"""Learned scalars stay in float32 where the model is in half precision: updates and sums of costs need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
import transformers
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class ScalarsInFloat32(nn.Module):
    """Mixin of a reducer: a cast to half precision leaves its own parameters, not those of its modules, in float32.

    An update of 2e-5 does not move a threshold of 0.01 in bfloat16, and MACs do not fit into float16. The names belong
    in `_keep_in_fp32_modules_strict`, too, which transformers reads as it loads.
    """

    model: transformers.PreTrainedModel

    @property
    def dtype(self) -> torch.dtype:
        """The model's, in which a saved reducer is loaded."""
        return self.model.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: parameter.data for name, parameter in self.named_parameters(recurse=False)}
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters(recurse=False):
            if parameter.dtype in HALF:
                exact = parameter if before[name].dtype in HALF else before[name]  # not rounded on the way
                parameter.data = exact.detach().to(parameter.device, torch.float32)
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.float()
        return self
