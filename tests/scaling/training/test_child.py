"""Laws of child processes: they run the parent's code and nothing from the folder they
are started in.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import scaling

HOSTILE = 'import pathlib; pathlib.Path("{marker}").touch()\n'
SWEEP = """
import sys
sys.path.remove("") if "" in sys.path else None
from scaling import sweep, DataConfig, ModelConfig, OptimConfig, RunConfig
from scaling.planning.aot import Compiler
from scaling.planning.hardware import parse_hardware

run = RunConfig(
    ModelConfig(width=8, depth=1, n_heads=2, vocab=16, context=16),
    DataConfig("markov:states=16,branching=2,tokens=40000"),
    OptimConfig(batch_size=4, warmup_tokens=128),
    tokens=1280,
    eval_tokens=2048,
)
table = sweep([run], sys.argv[1], workers=1, show="quiet")
assert table["loss"].notna().all()
with Compiler(parse_hardware("cpu")) as compiler:
    assert compiler.footprint(run, 1).total > 0
"""


def test_children_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    """A worker and the compiler process, in a folder that shadows their libraries."""
    folder, marker = tmp_path / "hostile", tmp_path / "marker"
    (folder / "scaling").mkdir(parents=True)
    for name in ("optax.py", "jax.py", "scaling/__init__.py"):
        (folder / name).write_text(HOSTILE.format(marker=marker))
    script = tmp_path / "script.py"
    script.write_text(SWEEP)
    package = str(Path(scaling.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(tmp_path / "out")],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": package},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
