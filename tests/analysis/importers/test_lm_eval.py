"""Results of lm-evaluation-harness: one row per model and task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import analysis

RESULTS = {
    "results": {
        "lambada": {
            "alias": "lambada",
            "perplexity,none": 12.5,
            "acc,none": 0.45,
            "acc_stderr,none": 0.01,
        },
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.1,
            "exact_match,flexible-extract": 0.2,
            "exact_match_stderr,strict-match": "N/A",
        },
    },
    "config": {
        "model": "hf",
        "model_args": "pretrained=org/small,revision=0100,dtype=float32",
    },
    "n-shot": {"lambada": 0, "gsm8k": 5},
}


def test_results_are_rows_of_model_and_task(tmp_path: Path) -> None:
    folder = tmp_path / "org__small"
    folder.mkdir()
    (folder / "results_2026-01-01.json").write_text(json.dumps(RESULTS))
    newer = {**RESULTS, "config": {"model_args": {"pretrained": "org/large"}}}
    (folder / "results_2026-01-02.json").write_text(json.dumps(newer))
    (folder / "results_2026-01-03.json").write_text('{"results": {}}')
    (folder / "results_2026-01-04.json").write_text("{")
    table = analysis.from_lm_eval(tmp_path)
    assert list(table["run_id"][:4]) == [*["org/small@0100"] * 2, *["org/large"] * 2]
    first, second = table.iloc[0], table.iloc[1]
    assert (first["task"], first["acc"], first["acc_stderr"]) == ("lambada", 0.45, 0.01)
    assert (first["n_shot"], first["dtype"]) == (0, "float32")
    assert second["exact_match,strict-match"] == 0.1
    assert second["exact_match,flexible-extract"] == 0.2
    assert np.isnan(second["exact_match_stderr,strict-match"])
    empty, torn = table["status"].to_list()[4:]
    assert empty == "results_2026-01-03.json has no results of lm-evaluation-harness"
    assert torn.startswith("results_2026-01-04.json is not JSON")
    one = analysis.from_lm_eval(folder / "results_2026-01-01.json")
    assert list(one["file"]) == ["results_2026-01-01.json"] * 2
    assert "status" not in one


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file results_\*\.json"):
        analysis.from_lm_eval(tmp_path)
    with pytest.raises(FileNotFoundError, match="lm_eval --output_path"):
        analysis.from_lm_eval(tmp_path / "absent")
