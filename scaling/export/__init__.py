"""Trained models as files that other programs load, and such files as parents for
fine-tuning.
"""

from __future__ import annotations

from scaling.export.fold import fold_multipliers
from scaling.export.hugging_face import (
    ImportedModel,
    export_hugging_face,
    import_hugging_face,
)
from scaling.export.imported_run import import_run
from scaling.export.safetensors_folder import export_safetensors

__all__ = [
    "ImportedModel",
    "export_hugging_face",
    "export_safetensors",
    "fold_multipliers",
    "import_hugging_face",
    "import_run",
]
