"""The configuration of a mixture of experts in the place of the feed-forward block."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from scaling.config.conversion import (
    convert_fields,
    require,
    require_at_least_one,
    require_not_negative,
)

Balancing = Literal["bias", "loss", "none"]


@dataclass(frozen=True)
class ExpertConfig:
    """Experts of each layer, of which every token is computed by a few. No token is ever
    left out.

    Raises:
        ConfigError: a value has the wrong type, is out of range, or contradicts
            another one.
    """

    routed: int = 0
    """Experts among which a router chooses; 0: the feed-forward block is dense."""
    per_token: int = 1
    """Experts that the router chooses for each token."""
    shared: int = 0
    """Experts that compute every token (Dai et al. 2024, arXiv:2401.06066)."""
    granularity: int = 1
    """An expert has d_ff / granularity hidden units (Krajewski et al. 2024,
    arXiv:2402.07871). The active experts of a token have as many as the dense block if
    per_token + shared is equal to it."""
    balancing: Balancing = "bias"
    """What evens the loads. "bias": a bias for each expert, which counts in the choice
    alone and moves after each step (Wang et al. 2024, arXiv:2408.15664). "loss": a term
    of the training loss (Fedus et al. 2021, arXiv:2101.03961), of each sequence."""
    bias_rate: float = 0.001
    """Of balancing "bias": how far a bias moves in a step."""
    loss_coefficient: float = 0.01
    """Of balancing "loss": the factor of the term, which is 1 at even loads."""

    def __post_init__(self) -> None:
        where = "model.experts"
        convert_fields(self, where)
        require_not_negative(self, where, "routed", "shared")
        require_not_negative(self, where, "bias_rate", "loss_coefficient")
        require_at_least_one(self, where, "per_token", "granularity")
        if self.routed == 0:
            self._check_dense(where)
            return
        ok = self.per_token <= self.routed
        fix = f"must be at most {where}.routed = {self.routed}"
        require(ok, f"{where}.per_token", self.per_token, fix)
        self._check_unread(where, "bias", "bias_rate")
        self._check_unread(where, "loss", "loss_coefficient")

    def _check_dense(self, where: str) -> None:
        """Without experts no field says anything, so none may be set."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            fix = f"needs experts; set {where}.routed, or leave it out"
            require(value == field.default, f"{where}.{field.name}", value, fix)

    def _check_unread(self, where: str, balancing: Balancing, name: str) -> None:
        value = getattr(self, name)
        ok = self.balancing == balancing or value == type(self).__dict__[name]
        fix = f"is of {where}.balancing = {balancing!r} alone; leave it out"
        require(ok, f"{where}.{name}", value, fix)
