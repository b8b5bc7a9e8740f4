"""Laws of the checkpoints: bitwise, whole or absent, and never a reason not to go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from scaling.training.checkpoint import Checkpoints


class State(NamedTuple):
    weights: dict[str, Any]
    step: np.ndarray


def state(step: int) -> State:
    rng = np.random.default_rng(step)
    weights = {
        "a/b": rng.normal(size=(3, 2)).astype(np.float32),
        "layers": {0: rng.integers(0, 9, 4)},
    }
    return State(weights, np.int32(step))  # pyright: ignore[reportArgumentType]


def assert_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    manager = Checkpoints(tmp_path, protected=[10])
    for step in (10, 20, 30, 40):
        manager.save(step, state(step))
    manager.wait()
    yield manager
    manager.close()


def test_a_state_comes_back_to_the_last_bit(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    step, tree = checkpoints.restore_latest(state(0), at_most=100) or (0, None)
    assert step == 40
    assert_equal(tree, state(40))
    again = Checkpoints(tmp_path)  # and in another process
    step, tree = again.restore_latest(state(0), at_most=100) or (0, None)
    again.close()
    assert step == 40
    assert_equal(tree, state(40))


def test_the_two_latest_and_the_protected_are_kept(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    assert sorted(
        int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()
    ) == [10, 30, 40]


@pytest.mark.parametrize(("at_most", "step"), [(40, 40), (39, 30), (29, 10), (10, 10)])
def test_no_later_state_than_asked_for(
    checkpoints: Checkpoints, at_most: int, step: int
) -> None:
    found = checkpoints.restore_latest(state(0), at_most)
    assert found is not None and found[0] == step
    assert_equal(found[1], state(step))
    assert checkpoints.restore_latest(state(0), at_most=9) is None


def test_a_step_that_is_there_is_left_as_it_is(checkpoints: Checkpoints) -> None:
    checkpoints.save(40, state(7))
    found = checkpoints.restore_latest(state(0), 40)
    assert found is not None
    assert_equal(found[1], state(40))


# Orbax leaves the other reads of a checkpoint running when one fails; they then end on
# a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncate", "empty", "remove"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path,
    checkpoints: Checkpoints,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whichever of its files is hit, an earlier state is used or, where the file did
    not matter, the same.
    """
    files = [path for path in (tmp_path / "40").rglob("*") if path.is_file()]
    assert len(files) > 3
    passed_over = 0
    for path in files:
        content = path.read_bytes()
        if damage == "remove":
            path.unlink()
        else:
            path.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            manager = Checkpoints(tmp_path)
            step, tree = manager.restore_latest(state(0), 100) or (0, None)
            manager.close()
        assert step in (30, 40), path
        assert_equal(tree, state(step))
        if step == 30:
            passed_over += 1
            assert "checkpoint 40 cannot be read" in caplog.text
        path.write_bytes(content)
    assert passed_over >= 2


def test_an_unfinished_checkpoint_is_none(tmp_path: Path) -> None:
    manager = Checkpoints(tmp_path)
    manager.save(10, state(10))
    manager.close()
    (tmp_path / "10").rename(tmp_path / "20.orbax-checkpoint-tmp")
    manager = Checkpoints(tmp_path)
    assert manager.restore_latest(state(0), 100) is None
    manager.save(20, state(20))
    found = manager.restore_latest(state(0), 100)
    manager.close()
    assert found is not None
    assert_equal(found[1], state(20))


def test_a_flipped_bit_is_noticed_and_an_earlier_state_used(
    checkpoints: Checkpoints,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flip that the storage does not notice: what is restored differs from what was
    saved in one bit.
    """
    restore = checkpoints._manager.restore

    def flipped(step: int, **how: Any) -> Any:
        leaves = restore(step, **how)
        if step == 40:
            first = next(path for path in sorted(leaves) if path != "digest")
            hit = np.array(leaves[first], ndmin=1)
            hit.view(np.uint8).reshape(-1)[0] ^= 1
            leaves[first] = hit.reshape(np.shape(leaves[first]))
        return leaves

    monkeypatch.setattr(checkpoints._manager, "restore", flipped)
    found = checkpoints.restore_latest(state(0), at_most=100)
    assert found is not None and found[0] == 30
    assert "checksum is wrong" in caplog.text
