"""A student learns its teacher's distribution, and is stored like any other run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scaling
from scaling.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TeacherConfig,
    Trunk,
)
from scaling.execution.sweep import sweep
from scaling.model.flops import forward_flops_per_token
from scaling.store import run_dirs
from scaling.training.loop import LoopConfig, train_trunk
from scaling.training.step import (
    StepSpec,
    TaughtParams,
    Teacher,
    compute_gradient_sum,
    make_step_spec,
    token_losses,
    training_losses,
)

LOOP = LoopConfig(chunk_steps=4, checkpoint_seconds=0.0)
SMALL = ModelConfig(width=8, depth=1, n_heads=2, vocab=32, context=16)
LARGE = dataclasses.replace(SMALL, width=16, depth=2)


def make_spec(weight: float, temperature: float = 1.0) -> StepSpec:
    teacher = Teacher(LARGE, weight, temperature)
    run = RunConfig(SMALL, optim=OptimConfig(batch_size=4))
    return make_step_spec(run, teacher=teacher)


def make_params(spec: StepSpec) -> TaughtParams:
    params = spec.init(0).params
    assert spec.teacher is not None
    other = jax.tree.map(lambda x: 3 * x, spec.teacher.family.init(5))
    return params._replace(teacher=other)


WINDOWS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (4, 17)))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_the_mixture_that_is_stated(temperature: float) -> None:
    spec = make_spec(0.3, temperature)
    params = make_params(spec)
    assert spec.teacher is not None
    student = spec.family.apply(params.student, WINDOWS[:, :-1])
    teacher = spec.teacher.family.apply(params.teacher, WINDOWS[:, :-1])
    log_shares = np.asarray(jax.nn.log_softmax(student / temperature))
    shares = np.asarray(jax.nn.softmax(teacher / temperature))
    taught = -(shares * log_shares).sum(-1) * temperature**2
    text, _ = token_losses(spec, params, WINDOWS)
    found, weights, _ = training_losses(spec, params, WINDOWS)
    expected = 0.7 * np.asarray(text) + 0.3 * taught
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert float(weights.sum()) == WINDOWS[:, 1:].size


def test_only_the_student_has_a_gradient() -> None:
    spec = make_spec(1.0)
    _, _, grads, _ = compute_gradient_sum(spec, make_params(spec), WINDOWS, None)
    shapes = jax.tree.map(lambda x: x.shape, grads)
    assert shapes == jax.tree.map(lambda x: x.shape, spec.family.init(0))


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    teacher = Teacher(SMALL, weight=1.0, temperature=1.5)
    spec = make_step_spec(RunConfig(SMALL), teacher=teacher)
    params = spec.family.init(2)
    taught = TaughtParams(params, params)
    _, _, grads, _ = compute_gradient_sum(spec, taught, WINDOWS, None)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-4


# --- whole runs -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that has a teacher, on a source of known entropy."""
    out = tmp_path_factory.mktemp("teachers")
    source = DataConfig("markov:states=16,branching=2,tokens=40000")
    optim = OptimConfig(lr=1e-2, batch_size=4, warmup_tokens=128)
    model = dataclasses.replace(LARGE, vocab=16)
    run = RunConfig(model, source, optim, tokens=64 * 200, eval_tokens=2048)
    sweep([run], out, workers=0, loop=LOOP, show="quiet")
    link = TeacherConfig(run=run.run_id, folder=str(out))
    student = dataclasses.replace(SMALL, vocab=16)
    return dataclasses.replace(run, model=student, teacher=link, tokens=64 * 60)


def test_a_student_is_resumed_stored_and_opened(
    teacher: RunConfig, tmp_path: Path
) -> None:
    run = teacher
    train_trunk(Trunk((run,)), tmp_path / "whole", LOOP, lambda event: None)
    steps = 0

    def interrupt(event: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_trunk(Trunk((run,)), tmp_path / "cut", LOOP, interrupt)
    train_trunk(Trunk((run,)), tmp_path / "cut", LOOP, lambda event: None)
    rows = []
    for name in ("whole", "cut"):
        path = run_dirs.run_dir(tmp_path / name, run) / "result.json"
        rows.append(json.loads(path.read_text()))
    assert rows[0]["loss"] == rows[1]["loss"]
    assert run.teacher is not None
    assert rows[0]["teacher"] == run.teacher.run
    taught_by = dataclasses.replace(LARGE, vocab=16)
    expected = rows[0]["tokens"] * forward_flops_per_token(taught_by)
    assert rows[0]["teacher_flops"] == expected
    end = scaling.load(tmp_path / "whole")
    assert end.evaluate_heldout().loss == pytest.approx(rows[0]["loss"], rel=1e-6)
    trunk = run_dirs.trunk_dir(tmp_path / "cut", run) / "checkpoints"
    step = max(int(path.name) for path in trunk.iterdir() if path.name.isdecimal())
    earlier = scaling.load(tmp_path / "cut", step=step)
    assert jax.tree.structure(earlier.params) == jax.tree.structure(end.params)


def test_a_student_comes_to_know_the_source_from_its_teacher_alone(
    teacher: RunConfig, tmp_path: Path
) -> None:
    """The text's own next tokens have no weight."""
    train_trunk(Trunk((teacher,)), tmp_path, LOOP, lambda event: None)
    path = run_dirs.run_dir(tmp_path, teacher) / "result.json"
    loss = json.loads(path.read_text())["loss"]
    assert loss < 0.75 * np.log(16)


def test_what_cannot_be_a_teacher_is_named(teacher: RunConfig, tmp_path: Path) -> None:
    assert teacher.teacher is not None
    moved = dataclasses.replace(teacher.teacher, folder=str(tmp_path / "away"))
    lost = dataclasses.replace(teacher, teacher=moved)
    assert lost.run_id == teacher.run_id
    with pytest.raises(ConfigError, match=r"teacher\.folder = .*is not there"):
        train_trunk(Trunk((lost,)), tmp_path, LOOP, lambda event: None)
    model = dataclasses.replace(teacher.model, vocab=20)
    with pytest.raises(ConfigError, match=r"model\.vocab = 20"):
        other = dataclasses.replace(teacher, model=model)
        train_trunk(Trunk((other,)), tmp_path, LOOP, lambda event: None)
    with pytest.raises(ConfigError, match=r"teacher\.weight = 0\.0"):
        TeacherConfig(teacher.teacher.run, weight=0.0)
    optim = dataclasses.replace(teacher.optim, lora_rank=2)
    with pytest.raises(ConfigError, match="leave one of them out"):
        dataclasses.replace(teacher, optim=optim)
