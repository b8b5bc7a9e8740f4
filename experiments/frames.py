"""The annotation of tables whose columns a type checker cannot follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    # pandas infers one union of a dozen types for every cell and column, so that each
    # `table["loss"] < 2` would be an error. At run time a Frame is a DataFrame.
    Frame = Any
else:
    Frame = pd.DataFrame
