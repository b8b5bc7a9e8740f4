"""Writes this folder with the code of commit d17ff75: `python write.py ids | folder | fit [RUNS.parquet]`."""

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path

from scaling import DataConfig, ModelConfig, OptimConfig, Plan, PlanConfig, RunConfig, make_plan, sweep
from scaling import parametrization, preemption, store
from scaling.cli import preset_path
from scaling.config import UnitMultipliers, canonical_json, from_dict, read_toml, to_dict

HERE = Path(__file__).parent


def dump(name, value):
    (HERE / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def ids():
    quickstart = make_plan(read_toml(preset_path("quickstart"), PlanConfig)).runs
    multipliers = UnitMultipliers(0.5, 2.0, 1.5, 0.75, 1.25)
    model = {name: RunConfig(ModelConfig(width=96, depth=3, n_heads=6, parametrization=name))
             for name in ("sp", "mup", "completep", "umup", "unit")}
    model["umup"] = RunConfig(
        ModelConfig(width=96, depth=3, n_heads=6, norm="nonparametric_rmsnorm", parametrization="umup", unit=multipliers),
        optim=OptimConfig(lr=0.5, weight_decay=2**-13),
    )
    model["unit"] = dataclasses.replace(
        model["unit"], model=dataclasses.replace(model["unit"].model, unit=UnitMultipliers(attention_softmax=0.3))
    )
    runs = {
        "defaults": RunConfig(),
        "quickstart_first": quickstart[0],
        "quickstart_middle": quickstart[len(quickstart) // 2],
        "quickstart_last": quickstart[-1],
        **{f"parametrization_{name}": run for name, run in model.items()},
        "source_markov": RunConfig(ModelConfig(vocab=64), DataConfig("markov:states=64,branching=3,seed=1", seed=7)),
        "source_pdfa": RunConfig(ModelConfig(vocab=64), DataConfig("pdfa", heldout_fraction=0.05)),
        "source_hierarchy": RunConfig(
            ModelConfig(vocab=9, context=16), DataConfig("hierarchy:symbols=8,rules=3,arity=2,levels=4,documents=5000")
        ),
        "schedule_cosine": RunConfig(optim=OptimConfig(schedule="cosine", warmup_tokens=12_345)),
        "schedule_inverse_sqrt": RunConfig(optim=OptimConfig(schedule="inverse_sqrt", clip_norm=None)),
        "schedule_wsd_1sqrt": RunConfig(optim=OptimConfig(schedule="wsd_1sqrt", cooldown_fraction=0.2), seed=3),
        "optimizer_muon": RunConfig(optim=OptimConfig(optimizer="muon", lr=0.02, beta1=0.95, batch_size=8, accumulate=2)),
        "optimizer_sgd": RunConfig(optim=OptimConfig(optimizer="sgd", lr=1e-5, epsilon=0.0)),
        "tokenizer_bpe": RunConfig(ModelConfig(vocab=512), DataConfig("sotu", "bpe:512")),
        "unique_tokens": RunConfig(data=DataConfig(unique_tokens=100_000), eval_tokens=4096),
        "bfloat16_swiglu_tied_learned": RunConfig(
            ModelConfig(dtype="bfloat16", activation="swiglu", tied=True, position="learned", ff_ratio=8 / 3, dropout=0.1)
        ),
        "scanned_layernorm": RunConfig(
            ModelConfig(depth=12, norm="layernorm", qk_norm=False, remat=True, scan_layers="always", zero_init_outputs=True)
        ),
        "budget_label": RunConfig(tokens=2_000_000, budget=4e11),
        "head_dim_without_n_heads": RunConfig(ModelConfig(width=96, n_heads=None, head_dim=16)),
    }
    for run in runs.values():
        parametrization.row_of(run.model)
        assert from_dict(RunConfig, json.loads(json.dumps(to_dict(run)))) == run
    dump("ids.json", [
        {"name": name, "config": to_dict(run), "run_id": run.run_id, "trunk_id": run.trunk_id}
        for name, run in runs.items()
    ])  # fmt: skip
    minimal = from_dict(RunConfig, {})
    dump("minimal.json", {"config": {}, "run_id": minimal.run_id, "trunk_id": minimal.trunk_id,
                          "canonical_json": canonical_json(to_dict(minimal))})  # fmt: skip


def the_plan():
    """Two sizes at three budgets on shared trunks, and one cosine run; the last of the larger size is interrupted."""
    config = PlanConfig(
        name="legacy",
        widths=(8, 16),
        tokens=(6_400, 12_800, 25_600),
        min_steps=1,
        min_tokens_per_parameter=0.1,
        model=ModelConfig(width=8, depth=1, n_heads=2, vocab=16, context=16, base_width=16, base_depth=1),
        data=DataConfig("markov:states=16,branching=3,tokens=20000"),
        optim=OptimConfig(warmup_tokens=640),
        eval_tokens=4096,
    )
    runs = list(make_plan(config).runs)
    cosine = dataclasses.replace(runs[1], optim=dataclasses.replace(runs[1].optim, schedule="cosine"))
    return Plan("legacy", (*runs, cosine)), runs[-1]


def folder():
    plan, last = the_plan()
    out = HERE / "folder"
    shutil.rmtree(out, ignore_errors=True)
    sweep(Plan(plan.name, tuple(run for run in plan if run != last)), out, workers=0, show="quiet")
    append = store.append_metrics

    def told_to_end(path, lines):  # what SIGTERM does, at a step that is always the same
        append(path, lines)
        if lines[-1]["step"] >= 200:
            preemption.request()

    store.append_metrics = told_to_end
    try:
        sweep(plan, out, workers=0, show="quiet")
        raise AssertionError("not interrupted")
    except preemption.Preempted:
        pass
    finally:
        store.append_metrics = append
    shutil.rmtree(out / "programs")
    for path in out.glob("*/checkpoints"):  # only the newest one of the interrupted trunk is needed
        if path.parent.name != f"trunk-{last.trunk_id}":
            shutil.rmtree(path)
    newest = max((out / f"trunk-{last.trunk_id}/checkpoints").iterdir(), key=lambda path: int(path.name))
    for path in newest.parent.iterdir():
        if path != newest:
            shutil.rmtree(path)
    for path in newest.rglob("commit_success.txt"):  # Orbax writes the absolute path into its mark
        path.write_text(path.read_text().replace(str(out.absolute()), "folder"))
    for path in out.glob("*/claims/*"):  # who trained is nobody's business
        first, _, rest = path.read_text().partition("\n")
        owner = json.loads(first.rstrip(".")) | {"host": "host", "machine": None, "pid": 1, "started": None}
        path.write_text(json.dumps(owner) + "\n" + rest)
    with tempfile.TemporaryDirectory() as whole:
        sweep(plan, whole, workers=0, show="quiet")
        at = store.run_dir(Path(whole), last)
        dump("uninterrupted.json", {
            "run_id": last.run_id,
            "trunk_id": last.trunk_id,
            "checkpoint_step": int(newest.name),
            "branch_step": last.branch_step,
            "result": json.loads((at / "result.json").read_text()),
            "metrics": [json.loads(line) for line in (at / "metrics.jsonl").read_text().splitlines()],
        })  # fmt: skip


def fit(parquet=HERE / "quickstart_runs.parquet"):
    import pandas as pd

    from analysis.study import study
    from scaling.cli_fit import draws_path

    if Path(parquet).resolve() != (HERE / "quickstart_runs.parquet").resolve():
        shutil.copyfile(parquet, HERE / "quickstart_runs.parquet")
    runs = pd.read_parquet(HERE / "quickstart_runs.parquet")
    result = study(runs, holdout="largest_budget", delta=1e-2, draws=1000)  # as experiments/quickstart.py
    found = result.fit
    found.to_json(HERE / "fit.json")
    result.boot.to_json(draws_path(HERE / "fit.json"))
    low, high = result.boot.predict_interval(N=1e6, D=1e8)
    dump("fit_params.json", {
        "law": found.law.name,
        "params": {name: float(value) for name, value in found.params.items()},
        "objective": float(found.objective),
        "standard_errors": found.standard_errors,
        "predict": {"N": 1e6, "D": 1e8, "loss": found.predict(N=1e6, D=1e8), "lower_90": float(low), "upper_90": float(high)},
    })  # fmt: skip


if __name__ == "__main__":
    {"ids": ids, "folder": folder, "fit": fit}[sys.argv[1]](*sys.argv[2:])
