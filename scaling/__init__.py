"""Train families of Transformers over a compute grid: plan, sweep, run table.

    plan = scaling.isoflop_plan(budgets=[1e11, 2e11, 4e11], data="code")
    runs = scaling.sweep(plan, out="runs/mine")

Names are imported on first use, so that the verbs that do not train never load JAX and
Flax.
"""

from __future__ import annotations

import lazy_loader

from scaling.planning.libtpu import silence_libtpu

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

silence_libtpu()
