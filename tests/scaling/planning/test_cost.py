"""Laws of the cost estimate: FLOPs and time are the plan's, a fix that is named fits,
and it is the first that does.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator

import pytest

from scaling import Plan, grid_plan
from scaling.cli.main import main
from scaling.config import ConfigError, RunConfig
from scaling.planning import libtpu, memory
from scaling.planning.aot import Compiler, Footprint
from scaling.planning.cost import (
    CostEstimate,
    count_sharing_devices,
    estimate_cost,
    suggest_fixes,
)
from scaling.planning.hardware import Hardware, parse_hardware
from scaling.planning.timing import (
    Timing,
    estimate_plan_seconds,
    select_calibration_runs,
)

MakeRun = Callable[..., RunConfig]

WIDE = {
    "optim.batch_size": 16,
    "model.depth": 2,
    "model.context": 32,
    "model.scan_layers": "always",
}


@pytest.fixture(scope="module")
def plan(make_run: MakeRun) -> Plan:
    """Three widths at two lengths: three shapes."""
    run = make_run()
    options = {
        "model": run.model,
        "optim": run.optim,
        "min_steps": 1,
        "min_tokens_per_parameter": 0.0,
    }
    return grid_plan([8, 16, 24], [10_000, 20_000], data=run.data, **options)


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool, bool]]:
    """For compiler and count 1000 bytes of state and 100 per sequence at a time, a
    tenth with remat; no program.

    The list grows by (width, micro-batches, remat, sharded) of each shape whose
    memory is estimated.
    """
    seen = []

    def footprint(run: RunConfig, devices: int, sharded: bool = False) -> Footprint:
        seen.append((run.model.width, run.optim.accumulate, run.model.remat, sharded))
        sequences = run.optim.batch_size // run.optim.accumulate // devices
        state = 1000 // (devices if sharded else 1)
        return Footprint(
            state, state, state, sequences * (10 if run.model.remat else 100)
        )

    monkeypatch.setattr(Compiler, "__enter__", lambda self: self)
    monkeypatch.setattr(Compiler, "__exit__", lambda self, *error: None)
    monkeypatch.setattr(Compiler, "footprint", lambda self, *args: footprint(*args))
    monkeypatch.setattr(memory, "estimate_gpu_footprint", footprint)
    return seen


def machine(memory: int, devices: int = 1) -> Hardware:
    return dataclasses.replace(
        parse_hardware("gpu:h100"), memory=memory, devices=devices
    )


def the_row(cost: CostEstimate) -> dict:
    (row,) = cost.table.to_dict("records")
    return row


# --- FLOPs and time -------------------------------------------------------------------------------------------


def test_flops_and_seconds_are_those_of_the_plan(plan: Plan, estimated: list) -> None:
    hardware = parse_hardware("gpu:h100:2")
    answer = estimate_cost(plan, hardware, utilization=0.25)
    table = answer.table
    assert len(estimated) == len(table) == 3  # shapes, not runs
    assert sum(table["flops_per_step"] * table["steps"]) == pytest.approx(plan.flops)
    assert answer.seconds == pytest.approx(
        plan.flops / (2 * hardware.peak["float32"] * 0.25)
    )
    assert answer.seconds == pytest.approx(table["seconds"].sum())
    assert estimate_cost(plan, hardware).utilization == hardware.utilization


def test_devices_that_cannot_share_a_batch_do_not_shorten_it(
    make_run: MakeRun, estimated: list
) -> None:
    six = make_run(**{"optim.batch_size": 6})
    assert [count_sharing_devices(six, devices) for devices in (1, 4, 8)] == [1, 3, 6]
    few, many = (
        estimate_cost([six], machine(10_000, devices)).seconds for devices in (3, 4)
    )
    assert few == many


def test_on_this_machine_the_time_is_that_of_the_calibration(
    plan: Plan, estimated: list
) -> None:
    def measure(fitting: Plan) -> list[Timing]:
        return [
            Timing(1e-3 * run.model.width, 1.0)
            for run in select_calibration_runs(fitting)
        ]

    here = parse_hardware("cpu")
    answer = estimate_cost(plan, here, measure=measure, workers=2)
    assert answer.hardware.memory == here.memory / 2
    assert answer.seconds == pytest.approx(
        estimate_plan_seconds(plan, measure(plan), 2)
    )
    assert answer.table["seconds_per_step"].tolist()[::2] == pytest.approx(
        [8e-3, 24e-3]
    )
    small = dataclasses.replace(here, memory=1)
    never = estimate_cost(
        plan, small, measure=lambda plan: pytest.fail("what does not fit is not run")
    )
    assert math.isnan(never.seconds) and never.table["seconds_per_step"].isna().all()
    with pytest.raises(ConfigError, match="not for the hardware 'cpu'"):
        estimate_cost(plan, here, 0.5)


# --- remedies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "devices", "remedy"),
    [
        (2600, 1, ""),
        (1160, 1, "--model.remat"),
        (1159, 1, "--model.remat --optim.accumulate 2"),
        (1010, 1, "--model.remat --optim.accumulate 16"),
        (1009, 1, None),
        (1040, 4, "--model.remat"),
        (1009, 4, "--model.remat fsdp over 4 devices"),
        (260, 4, "--model.remat --optim.accumulate 4 fsdp over 4 devices"),
        (259, 4, None),
    ],
)
def test_the_first_fix_that_works_is_named(
    make_run: MakeRun, estimated: list, memory: int, devices: int, remedy: str | None
) -> None:
    row = the_row(
        estimate_cost([make_run(**{"optim.batch_size": 16})], machine(memory, devices))
    )
    assert row["remedy"] == remedy
    assert row["fits"] == (remedy == "")
    if remedy:
        assert row["remedy_bytes"] <= memory < row["bytes_per_device"]


def test_where_the_state_alone_is_too_large_only_splitting_it_is_tried(
    make_run: MakeRun, estimated: list
) -> None:
    estimate_cost([make_run(**{"optim.batch_size": 16})], machine(999, 4))
    assert all(sharded for *_, sharded in estimated[1:])


def test_a_fix_is_the_same_training(make_run: MakeRun) -> None:
    run = make_run(**{"optim.batch_size": 16})
    for fix in suggest_fixes(run, machine(10_000, 4)):
        new = fix.run
        assert (new.batch_tokens, new.steps, new.tokens) == (
            run.batch_tokens,
            run.steps,
            run.tokens,
        )
        assert (
            count_sharing_devices(new, 4) == 4
        )  # the micro-batch still splits over all devices


# --- compiled for CPU -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    """Four virtual CPU devices; XLA is told not to take its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        with Compiler(
            dataclasses.replace(parse_hardware("cpu"), devices=4)
        ) as compiler:
            compiler.footprint = functools.cache(
                compiler.footprint
            )  # each program is compiled once
            yield compiler


@pytest.fixture(scope="module")
def plain(make_run: MakeRun, compiler: Compiler) -> Footprint:
    """Of a shape whose activations outweigh its parameters, on one device."""
    return compiler.footprint(make_run(**WIDE), 1)


def test_bytes_fall_with_the_micro_batch_and_with_remat(
    make_run: MakeRun, compiler: Compiler, plain: Footprint
) -> None:
    split = compiler.footprint(make_run(**WIDE, **{"optim.accumulate": 4}), 1)
    remat = compiler.footprint(make_run(**WIDE, **{"model.remat": True}), 1)
    assert split.total < plain.total and remat.total < plain.total
    assert (
        split.arguments == remat.arguments == plain.arguments
    )  # the state is the same


def test_devices_share_the_batch_and_fsdp_the_state(
    make_run: MakeRun, compiler: Compiler, plain: Footprint
) -> None:
    shared, split = (
        compiler.footprint(make_run(**WIDE), 4, sharded) for sharded in (False, True)
    )
    assert shared.temporaries < plain.temporaries
    windows = plain.arguments - plain.aliased  # and the schedule
    assert shared.arguments - shared.aliased == pytest.approx(windows / 4, rel=0.1)
    assert split.aliased == pytest.approx(shared.aliased / 4, rel=0.05)


def test_a_fix_has_been_compiled_and_fits(
    make_run: MakeRun,
    compiler: Compiler,
    plain: Footprint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Compiler, "__enter__", lambda self: self)
    monkeypatch.setattr(Compiler, "__exit__", lambda self, *error: None)
    compiled_once = lambda self, run, devices, sharded: compiler.footprint(run, devices)
    monkeypatch.setattr(Compiler, "footprint", compiled_once)
    lines: list[str] = []
    limit = plain.total - 1
    here = dataclasses.replace(parse_hardware("cpu"), memory=limit)
    row = the_row(estimate_cost([make_run(**WIDE)], here, report=lines.append))
    assert (row["fits"], row["bytes_per_device"], row["remedy"]) == (
        False,
        plain.total,
        "--model.remat",
    )
    assert (
        row["remedy_bytes"]
        == compiler.footprint(make_run(**WIDE, **{"model.remat": True}), 1).total
        <= limit
    )
    assert len(lines) == 2


def test_a_compiler_that_fails_says_why(make_run: MakeRun, compiler: Compiler) -> None:
    with pytest.raises(RuntimeError, match=r"compiling for 'cpu' failed: .*3"):
        compiler.footprint(make_run(**{"optim.batch_size": 4}), 3, True)
    with Compiler(compiler.hardware) as other:
        other._child.kill()
        with pytest.raises(RuntimeError, match="died"):
            other.footprint(make_run(), 1)


# --- the command ----------------------------------------------------------------------------------------------

FLAGS = [
    "--widths",
    "8",
    "12",
    "--tokens",
    "20000",
    "--budgets",
    "--min-steps",
    "1",
    "--model.n-heads",
    "2",
]


def test_plan_prints_the_cost(
    estimated: list, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "plan",
        *FLAGS,
        "--model.head-dim",
        "None",
        "--min-tokens-per-parameter",
        "0",
    ]
    assert (
        main([*flags, "--hardware", "gpu:l4:2", "--utilization", "0.3", "--json"]) == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["utilisation"] == 0.3 and answer["target"]["devices"] == 2
    assert [row["width"] for row in answer["shapes"]] == [8, 12]
    assert main([*flags, "--target", "gpu:l4:2"]) == 0
    printed = capsys.readouterr().out
    assert (
        "2 of 2 shapes fit" in printed
        and "hours at a utilization of 0.4" in printed
        and "estimate" in printed
    )
    assert main([*flags, "--target", "gpu:l40"]) == 2
    assert "did you mean 'gpu:l40s' or 'gpu:l4'" in capsys.readouterr().err


def test_without_libtpu_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, make_run: MakeRun
) -> None:
    monkeypatch.setattr(libtpu, "is_installed", lambda: False)
    with pytest.raises(
        ConfigError, match=r"hardware 'v5e:2x2': .*pip install 'scaling\[tpu\]'"
    ):
        estimate_cost([make_run()], parse_hardware("v5e:2x2"))
