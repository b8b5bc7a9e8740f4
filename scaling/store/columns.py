"""TODO scaling.store.columns."""

from __future__ import annotations

COLUMNS = (
    *("run_id", "trunk_id", "sweep", "seed", "status", "budget"),
    *("width", "depth", "n_heads", "d_ff", "vocab", "context", "parametrization"),
    *("n_total", "n_non_embedding", "n_matmul", "tokens", "unique_tokens", "epochs"),
    *("flops", "flops_6nd", "flops_spent"),
    *(
        "optimizer",
        "lr",
        "batch_tokens",
        "warmup_tokens",
        "schedule",
        "cooldown_fraction",
        "weight_decay",
    ),
    *(
        "source",
        "fingerprint",
        "tokenizer",
        "loss",
        "loss_se",
        "bits_per_byte",
        "diverged",
        "undercooled",
    ),
    *("device", "wall_seconds", "versions", "commit"),
)

_LATER = (
    "flops_spent",
    "fingerprint",
)  # not in a result, or not in those of earlier versions
IDS = ("run_id", "trunk_id")
FLAGS = ("diverged", "undercooled")
TEXTS = (
    *(
        "sweep",
        "status",
        "parametrization",
        "optimizer",
        "schedule",
        "source",
        "fingerprint",
        "tokenizer",
    ),
    *("device", "versions", "commit"),
)
_DIVISORS = ("tokens", "batch_tokens", "n_matmul", "flops")
