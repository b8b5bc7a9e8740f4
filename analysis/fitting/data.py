"""What a law is fitted to: as NumPy arrays of the runs, and as the float64 arrays that
the compiled programs of `analysis.fitting.newton` take.

Shapes: n rows, P parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import numpy as np

from analysis.fitting.effects import Trunks
from analysis.laws.base import Binding, Nonlinear

Named = dict[str, jax.Array]


@contextlib.contextmanager
def use_float64() -> Iterator[None]:
    """Compute in float64 on the CPU inside the block. The caller's precision and
    default device stay as they are.
    """
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        yield


@dataclass(frozen=True)
class Data:
    """What a law is fitted to.

    Attributes:
        x: the law's variables, [n] each.
        loss: [n], the law's target.
        fixed: values of the fixed parameters.
        delta: Huber's threshold on the scaled residual, inf for least squares.
        log: residuals are in the logarithm of the target, else in its own units.
        quantile: 1/2 fits the middle of the runs; 0.1 fits a lower envelope.
        scale: [n] relative scale of the noise; None if it is the same for all rows.
        weight: [n] weights of the rows; None if they are all 1.
        prior: parameter -> (mean, precision) in z.
        trunk: [n] integer of the trunk of each row; None if rows are independent.
        ratio: variance of a trunk's effect over that of a row.
        labels: variables in x that are labels of groups.
        chosen_reference: the run at which coefficients are measured by their terms;
            None for the geometric-mean run.
    """

    x: Mapping[str, np.ndarray]
    loss: np.ndarray
    fixed: Mapping[str, float]
    delta: float
    log: bool = True
    quantile: float = 0.5
    scale: np.ndarray | None = None
    weight: np.ndarray | None = None
    prior: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    trunk: np.ndarray | None = None
    ratio: float = 0.0
    labels: tuple[str, ...] = ()
    chosen_reference: Mapping[str, np.ndarray | float] | None = None

    @property
    def reference(self) -> dict[str, np.ndarray | float]:
        """The run that the law chose, or the geometric-mean run, which belongs to every
        group.
        """
        if self.chosen_reference is not None:
            return dict(self.chosen_reference)
        mean_run: dict[str, np.ndarray | float] = {}
        for name, values in self.x.items():
            is_label = name in self.labels
            mean_run[name] = 0.0 if is_label else float(np.exp(np.mean(np.log(values))))
        return mean_run

    def unit(self, entry: Nonlinear) -> float:
        """The unit of the range of a `Nonlinear`, from the geometric-mean run."""
        size = self.reference
        size.setdefault("loss", float(np.exp(np.mean(np.log(np.abs(self.loss))))))
        return float(np.prod([size[name] ** exponent for name, exponent in entry.unit]))

    def take(self, rows: np.ndarray) -> Data:
        """The data of the given rows only."""
        return replace(
            self,
            x={name: values[rows] for name, values in self.x.items()},
            loss=self.loss[rows],
            scale=None if self.scale is None else self.scale[rows],
            weight=None if self.weight is None else self.weight[rows],
            trunk=None if self.trunk is None else self.trunk[rows],
        )


class DeviceTrunks(NamedTuple):
    """What whitening needs of the padded rows, [n] each.

    Attributes:
        label: the trunk of each row. Padding is in a trunk of its own.
        share: what each row gives up of the sum over its trunk; 0 for padding.
    """

    label: jax.Array
    share: jax.Array


class DeviceData(NamedTuple):
    """`Data` as the compiled programs take it, a pytree of float64 arrays.

    Attributes:
        x, loss, scale: of the padded rows, [n] each.
        fixed, reference: by parameter and by variable, scalars.
        unit: of each free nonlinear parameter, scalars.
        delta, log, quantile: scalars.
        mean, precision: [P] the prior of z; precision 0 where there is none.
        trunks: of the padded rows; None if rows are independent.
    """

    x: Named
    loss: jax.Array
    scale: jax.Array
    fixed: Named
    reference: Named
    unit: Named
    delta: jax.Array
    log: jax.Array
    quantile: jax.Array
    mean: jax.Array
    precision: jax.Array
    trunks: DeviceTrunks | None


def load_rows(binding: Binding, data: Data, rows: np.ndarray) -> DeviceData:
    """The given rows as the compiled programs take them. Call inside `use_float64()`."""
    prior = [data.prior.get(name, (0.0, 0.0)) for name in binding.free]
    scale = np.ones(len(data.loss)) if data.scale is None else data.scale
    units = {entry.name: data.unit(entry) for entry in binding.nonlinear}
    return DeviceData(
        x={name: _load(values[rows]) for name, values in data.x.items()},
        loss=_load(data.loss[rows]),
        scale=_load(scale[rows]),
        fixed=_load_scalars(data.fixed),
        reference=_load_scalars(data.reference),
        unit=_load_scalars(units),
        delta=_load(data.delta),
        log=jax.device_put(np.asarray(data.log)),
        quantile=_load(data.quantile),
        mean=_load([mean for mean, _ in prior]),
        precision=_load([precision for _, precision in prior]),
        trunks=_load_trunks(data, len(rows)),
    )


def _load_trunks(data: Data, padded: int) -> DeviceTrunks | None:
    """The trunks of the rows, then of their padding."""
    if data.trunk is None:
        return None
    n = len(data.loss)
    trunks = Trunks.from_labels(data.trunk)
    label = np.full(padded, padded - 1)
    label[:n] = trunks.label
    share = np.zeros(padded)
    share[:n] = trunks.compute_share(data.ratio)[trunks.label]
    return DeviceTrunks(label=jax.device_put(label), share=_load(share))


def _load_scalars(values: Mapping[str, np.ndarray | float]) -> Named:
    return {name: _load(value) for name, value in values.items()}


def _load(value: float | list[float] | np.ndarray) -> jax.Array:
    """The value in float64 on the device, without a program for the conversion."""
    return jax.device_put(np.asarray(value, float))
