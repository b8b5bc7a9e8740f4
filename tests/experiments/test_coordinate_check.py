"""The coordinate check of the parametrisations (Yang et al. 2022, appendix D.1): what a step changes, over sizes."""

from __future__ import annotations

import pytest

from experiments.coordinate_check import CoordinateCheck, measure, slopes

pytestmark = pytest.mark.slow
BLOCKS = ["middle block", "last block"]


def slopes_of(args: CoordinateCheck, axis: str, step: int) -> dict[str, dict[str, float]]:
    found = slopes(measure(args, axis))
    found = found[found["step"] == step]
    return {
        name: dict(zip(rows["layer"], rows["slope"], strict=True)) for name, rows in found.groupby("parametrization")
    }


def test_changes_do_not_grow_with_width_under_mup_and_umup() -> None:
    """Within 0.1 in every layer, but for u-muP's embedding, whose rate falls as width^-1/2 by its rule."""
    args = CoordinateCheck(width=("sp", "mup", "umup"), widths=(64, 128, 256), seeds=2)
    found = slopes_of(args, "width", args.steps)
    assert all(abs(slope) < 0.1 for slope in found["mup"].values()), found
    assert all(abs(slope) < 0.1 for layer, slope in found["umup"].items() if layer != "embedding"), found
    assert -0.6 < found["umup"]["embedding"] < -0.4
    assert all(found["sp"][layer] > 0.5 for layer in BLOCKS), found


def test_changes_do_not_grow_with_depth_under_completep() -> None:
    args = CoordinateCheck(depth=("mup", "completep"), depths=(2, 4, 8, 16), seeds=1, steps=3)
    found = slopes_of(args, "depth", args.steps)
    assert all(abs(found["completep"][layer]) < 0.1 for layer in [*BLOCKS, "logits"]), found
    assert all(found["mup"][layer] > 0.5 for layer in BLOCKS), found
