"""The guide for architectures does what it says, at small scale."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import scaling
from scaling.cli.check_architecture import make_small_model
from scaling.cli.main import main
from scaling.config import ARCHITECTURES
from scaling.execution.conformance import Subject, check_resume
from scaling.store.query import read_config

GUIDE = Path(__file__).parents[2] / "docs" / "how_to" / "add_an_architecture.md"
NAME = "my_models:MeanMixer"


def read_code_blocks() -> list[str]:
    """The Python of the guide."""
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module of the guide, where the commands are run."""
    (tmp_path / "my_models.py").write_text(read_code_blocks()[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return tmp_path


def test_the_module_of_the_guide_is_swept_by_workers_and_used(folder: Path) -> None:
    command = [
        *("sweep", "--preset", "quickstart", "--architecture", NAME),
        *("--budgets", "2e9", "--sizes-per-budget", "2", "--widths", "8", "16"),
        *("--min-steps", "10", "--min-tokens-per-parameter", "1"),
        *("--seeds", "0", "--model.expansion", "3"),
        *("--out", "runs/mean", "--workers", "1", "--progress", "quiet"),
    ]
    assert main(command) == 0
    table = scaling.run_table("runs/mean")
    assert set(table["architecture"]) == {NAME} and len(table) == 2
    assert table[["n_heads", "d_ff"]].isna().all(axis=None)
    model = read_config(folder / "runs" / "mean", table["run_id"].iloc[0]).model
    assert (model.depth, getattr(model, "expansion")) == (2, 3)  # noqa: B009
    trained = scaling.load("runs/mean", "best")
    assert trained.generate("def f(", max_tokens=4, temperature=0.0)[0].text is not None
    assert trained.loss("import os\n").tokens == 11
    recorded = table.loc[table["loss"].idxmin(), "loss"]
    assert trained.evaluate_heldout().loss == pytest.approx(recorded, abs=1e-5)
    with pytest.raises(scaling.ConfigError, match="needs a 'decoder'"):
        scaling.count_cost(trained.config, 4, 4)


def test_the_decay_of_the_guide_is_a_parameter_with_its_own_values() -> None:
    module = SimpleNamespace(decays=[])
    names = {"nnx": nnx, "jnp": jnp, "scaling": scaling, "width": 8, "self": module}
    names["rules"] = scaling.bind_parametrization(make_small_model("lstm"))
    exec(read_code_blocks()[1], names)
    (logit,) = module.decays
    assert logit.get_metadata()["role"] == "gain"
    horizon = 1 / (1 - jax.nn.sigmoid(logit[...]))
    assert horizon[0] == pytest.approx(2) and horizon[-1] == pytest.approx(101)


@pytest.mark.slow
def test_a_run_of_another_architecture_resumes_to_the_bit(tmp_path: Path) -> None:
    assert check_resume(Subject(make_small_model("lstm"), tmp_path))


def test_a_law_that_does_not_hold_ends_with_status_1(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the two first laws alone, of which one is broken."""
    text = (folder / "my_models.py").read_text()
    acausal = text.replace("norm(x)", "norm(x[:, ::-1])")
    assert acausal != text
    (folder / "my_models.py").write_text(acausal)
    laws = {
        name: check
        for name, check in scaling.execution.conformance.LAWS.items()
        if name.startswith(("logits", "no token"))
    }
    monkeypatch.setattr(scaling.execution.conformance, "LAWS", laws)
    monkeypatch.setattr("jax.config.update", lambda *setting: None)
    assert main(["check-architecture", NAME]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["passed", "failed"]


OPTIONS = {
    "experts": "--model.experts.routed 4 --model.experts.per-token 1",
    "heads, gates and layers": (
        "--model.attention-gate --model.attention-sink --model.value-residual "
        "--model.n-heads 4 --model.n-kv-heads 2 --model.layer-pattern wfn "
        "--model.window 32 --model.logit-cap 30"
    ),
    "branches, norms and positions": (
        "--model.parallel-blocks --model.position learned --model.norm layernorm "
        "--model.no-qk-norm --model.activation relu2 --model.tied"
    ),
}
"""Options of the decoder, those that can stand together."""


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_law_holds_with_the_options_of_the_decoder(options: str) -> None:
    command = [sys.executable, "-m", "scaling.cli", "check-architecture", "decoder"]
    done = subprocess.run(
        [*command, *options.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ARCHITECTURES, NAME])
def test_every_law_holds_on_eight_devices(folder: Path, name: str) -> None:
    command = [sys.executable, "-m", "scaling.cli", "check-architecture", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    skipped = done.stdout.count("skipped")
    assert skipped == (2 if name == NAME else 0)
