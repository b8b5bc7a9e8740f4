"""Fit scaling laws to a table of runs. Imports neither Flax nor the `scaling` package.

    runs = analysis.load_runs("runs.csv", N="params", D="tokens", loss="val_loss")
    fit = analysis.fit(runs, law="chinchilla")
    boot = fit.bootstrap(4000, seed=0)
    analysis.allocate(fit, C=1e21, boot=boot)

Names are imported on first use, so that `import analysis` costs nothing.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
