"""Public names of the last release work under their old spelling, and warn."""

from __future__ import annotations

import pytest

import scaling


@pytest.mark.parametrize(
    ("old", "new"), [("Price", "CostEstimate"), ("Target", "Hardware")]
)
def test_an_old_class_is_the_new_one(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"use scaling.{new}"):
        assert getattr(scaling, old) is getattr(scaling, new)


def test_parse_target_is_parse_hardware() -> None:
    with pytest.warns(DeprecationWarning, match="use scaling.parse_hardware"):
        hardware = scaling.parse_target("gpu:h100:2")
    assert hardware == scaling.parse_hardware("gpu:h100:2")


def test_price_is_estimate_cost(make_run) -> None:
    hardware = scaling.parse_hardware("gpu:h100")
    with pytest.warns(DeprecationWarning, match="use scaling.estimate_cost"):
        old = scaling.price([make_run()], hardware, utilisation=0.5)
    new = scaling.estimate_cost([make_run()], hardware, utilization=0.5)
    assert old.seconds == new.seconds
