"""The coordinate check of the parametrizations (Yang et al. 2022, appendix D.1): what
steps change, over sizes.
"""

from __future__ import annotations

import pytest

from experiments.coordinate_check import CoordinateCheck, fit_slopes, measure_axis

pytestmark = pytest.mark.slow
BLOCKS = ["middle block", "last block"]


def slopes_of(args: CoordinateCheck, axis: str) -> dict[str, dict[str, float]]:
    found = fit_slopes(measure_axis(args, axis))
    found = found[found["step"] == args.steps]
    return {
        name: dict(zip(rows["layer"], rows["slope"], strict=True))
        for name, rows in found.groupby("parametrization")
    }


def test_changes_do_not_grow_with_width_under_mup_and_umup() -> None:
    """Within 0.1 in every layer, but for u-muP's embedding, whose rate falls as
    width^-1/2 by its rule.
    """
    found = slopes_of(CoordinateCheck(width=("sp", "mup", "umup"), seeds=2), "width")
    assert found["umup"].pop("embedding") == pytest.approx(-0.5, abs=0.05)
    assert all(
        abs(slope) < 0.1 for name in ("mup", "umup") for slope in found[name].values()
    ), found
    assert all(found["sp"][layer] > 0.5 for layer in [*BLOCKS, "logits"]), found


def test_changes_do_not_grow_with_depth_under_completep() -> None:
    """From depth 8 on: below, the stream is at a distance of order 1 / depth from its
    limit.

    The slope of one seed's last branch is 0.13, that of the mean of three below 0.05.
    """
    found = slopes_of(
        CoordinateCheck(depth=("mup", "completep"), depths=(8, 16, 32)), "depth"
    )
    assert all(abs(slope) < 0.1 for slope in found["completep"].values()), found
    assert all(found["mup"][layer] > 0.5 for layer in BLOCKS), found
