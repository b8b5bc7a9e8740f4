"""The model of `torch_eager`, through `torch.compile`."""

from __future__ import annotations

from contenders import Contender, Shape, torch_eager


def build_contender(shape: Shape) -> Contender:
    """A step of compiled passes and fused AdamW."""
    return torch_eager.build_contender(shape, compiled=True)
