"""Verbs of the `scaling` command that hand trained models on and take them in: export,
import.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from scaling.cli.fit import Positional
from scaling.cli.models import ModelArgs
from scaling.cli.output import print_json
from scaling.config import to_dict


@dataclass(frozen=True)
class ExportArgs:
    """Write a trained model as files that other programs load.

    Examples: scaling export runs/mine --run d20d --out my_model
              scaling export runs/mine --run d20d --format safetensors --out my_model
    """

    model: Annotated[ModelArgs, tyro.conf.arg(name="")]
    out: Path
    """The folder to write. It must be new or empty."""
    format: Literal["hf", "safetensors"] = "hf"
    """hf: what transformers loads. safetensors: the parameters by name, of any
    model."""
    json: bool = False

    def __call__(self) -> int:
        from scaling.export import export_hugging_face, export_safetensors

        with self.model.open_model() as loaded:
            class_name = None
            if self.format == "hf":
                architecture = export_hugging_face(
                    loaded.config, loaded.params, loaded.tokenizer, self.out
                )
                class_name = architecture.class_name
            else:
                run = to_dict(loaded.run)
                run["model"] = to_dict(loaded.config)
                export_safetensors(run, loaded.params, loaded.tokenizer, self.out)
        files = sorted(path.name for path in self.out.iterdir())
        if self.json:
            written = {"out": str(self.out), "class_name": class_name, "files": files}
            print_json(written)
            return 0
        what = f"{class_name} of transformers" if class_name else "plain safetensors"
        print(f"{self.out}: {what}; {', '.join(files)}")
        return 0


@dataclass(frozen=True)
class ImportArgs:
    """Take in a checkpoint of transformers as a run, to fine-tune, evaluate and generate
    from.

    Example: scaling import my_checkpoint --out runs/imported
    """

    folder: Positional[Path]
    """The folder of the checkpoint: config.json, safetensors and a tokenizer."""
    out: Path = Path("runs/imported")
    """The folder in which the run is written, as that of a sweep."""

    def __call__(self) -> int:
        from scaling.export import import_run

        print(import_run(self.folder, self.out))
        return 0
