"""A folder of plain files holds every parameter and the whole configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from scaling.config import ConfigError, RunConfig, from_dict, to_dict
from scaling.data.tokenizers import ByteTokenizer
from scaling.export import export_safetensors

MakeTrained = Callable[..., Any]


@pytest.mark.parametrize("scan_layers", ["never", "always"])
def test_every_parameter_and_the_configuration_come_back(
    make_trained: MakeTrained, tmp_path: Path, scan_layers: str
) -> None:
    model = make_trained(
        parametrization="umup", norm="layernorm", scan_layers=scan_layers
    )
    run = RunConfig(model=model.config)
    folder = tmp_path / "out"
    export_safetensors(to_dict(run), model.params, ByteTokenizer(), folder)
    assert from_dict(RunConfig, json.loads((folder / "config.json").read_text())) == run
    assert (folder / "tokenizer.json").is_file()
    tensors = load_file(folder / "parameters.safetensors")

    def compare(prefix: str, value: Any) -> int:
        if not isinstance(value, dict):
            np.testing.assert_array_equal(tensors[prefix[1:]], value)
            return 1
        return sum(compare(f"{prefix}.{key}", part) for key, part in value.items())

    assert compare("", model.params) == len(tensors)
    if scan_layers == "never":
        assert "blocks.1.branches.0.qkv.weights.2" in tensors


def test_a_source_of_ids_has_no_tokenizer(
    make_trained: MakeTrained, tmp_path: Path
) -> None:
    model = make_trained()
    run = to_dict(RunConfig(model=model.config))
    export_safetensors(run, model.params, None, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "parameters.safetensors"]
    with pytest.raises(ConfigError, match="name a new one"):
        export_safetensors(run, model.params, None, tmp_path / "out")
