"""Claims that arithmetic settles: the size of a 7B model (S10) and the documents'
worked examples (S16).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.documents.evidence import Evidence
from experiments.documents.statement import (
    Claim,
    Finding,
    Numbers,
    Row,
    make_exact,
    name_verdict,
)
from scaling.config import ModelConfig
from scaling.model.flops import count_parameters

SAID_PARAMETERS = 700e9
SEVEN_B = ModelConfig(
    width=4096,
    depth=32,
    n_heads=32,
    ff_ratio=11008 / 4096,
    vocab=32_000,
    activation="swiglu",
    qk_norm=False,
)


def _examine_s10(evidence: Evidence) -> Finding:
    counts = count_parameters(SEVEN_B)
    block = counts.n_matmul - SEVEN_B.vocab * SEVEN_B.width
    table = SEVEN_B.vocab * SEVEN_B.width
    parts = {
        "matrices of 32 layers": block,
        "gains of the norms": counts.n_total - block - 2 * table,
        "token embedding": table,
        "output head": table,
        "all": counts.n_total,
        "said": int(SAID_PARAMETERS),
    }
    return Finding(
        {"parameters": make_exact(counts.n_total)},
        f"Width {SEVEN_B.width}, {SEVEN_B.depth} layers, {SEVEN_B.n_heads} heads, gated feed-forward of "
        f"{SEVEN_B.d_ff:,}, vocabulary {SEVEN_B.vocab:,}, RMSNorm, head not tied. The count is the one that the "
        f"library uses everywhere. Said is {SAID_PARAMETERS / counts.n_total:.0f} times as much: the B of 7B is 10^9.",
        table=[
            {"part": name, "parameters": f"{number:,}"}
            for name, number in parts.items()
        ],
    )


def _decide_s10(n: Numbers) -> str:
    rounded = float(f"{n['parameters'].value:.0e}")
    return name_verdict(rounded == SAID_PARAMETERS)


@dataclass(frozen=True)
class Example:
    """One printed number: as said, and recomputed."""

    document: str
    quantity: str
    said: float
    recomputed: float

    @property
    def agrees(self) -> bool:
        """Whether the recomputed number, rounded to the digits printed, is the one
        said.
        """
        text = repr(float(self.said))
        decimals = len(text.partition(".")[2]) if not text.endswith(".0") else 0
        return abs(self.recomputed - self.said) <= 0.5000001 * 10.0**-decimals


def _softmax() -> list[Example]:
    """Document A: five rows of logits in steps of 5, and a loss of the given
    probabilities.
    """
    logits = jnp.asarray(
        [[start + 5.0 * i for i in range(5)] for start in (31, 37, 43, 49, 55)]
    )
    rows, found = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64), []
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            said = round(0.1 * (2 + i + j), 1)
            found.append(
                Example("A", f"softmax, row {i + 1}, entry {j + 1}", said, float(value))
            )
    labels, chosen = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([0.6, 0.7, 0.8])
    loss = -float((labels * jnp.log(chosen)).sum())
    return [*found, Example("A", "-1 log .6 - 2 log .7 - 3 log .8", 0.42, loss)]


def _forward() -> list[Example]:
    """Document C: h1 = W1 x + b1, h2 = W2 a1 + b2 from the a1 that is printed."""
    h1 = jnp.asarray([[1.0, 2, 3], [4, 5, 6]]) @ jnp.asarray([1.0, 2, 3]) + jnp.asarray(
        [1.0, 2]
    )
    h2 = jnp.asarray([[7.0, 8], [9, 10]]) @ jnp.asarray([14.0, 29]) + jnp.asarray(
        [3.0, 4]
    )
    pairs = (("h1", (14.0, 29.0), h1), ("h2 from a1 = [14, 29]", (249.0, 390.0), h2))
    return [
        Example("C", f"{name}, entry {i + 1}", said, float(value))
        for name, printed, values in pairs
        for i, (said, value) in enumerate(zip(printed, values, strict=True))
    ]


def _unit() -> list[Example]:
    """Document E: one unit with every weight and its bias .1, its ReLU, and a squared
    error.
    """
    z = jnp.full(3, 0.1) @ jnp.asarray([1.0, 2, 3]) + 0.1
    error = 0.5 * jnp.square(jnp.asarray([1.0, 0.0]) - jnp.asarray([0.3, 0.7])).sum()
    return [
        Example("E", "z = w.x + b", 0.6, float(z)),
        Example("E", "ReLU of the z said, .6", 0.0, float(jax.nn.relu(0.6))),
        Example("E", "half the sum of squares of y - yhat", 0.2, float(error)),
    ]


def worked_examples() -> list[Example]:
    """Every printed number of the documents' worked examples, beside what JAX makes of
    the same inputs.
    """
    return [*_softmax(), *_forward(), *_unit()]


def _examine_s16(evidence: Evidence) -> Finding:
    examples = worked_examples()
    right = sum(one.agrees for one in examples)
    rows: list[Row] = [
        {
            "document": one.document,
            "quantity": one.quantity,
            "said": f"{one.said:g}",
            "recomputed": f"{one.recomputed:.4g}",
            "agrees": "yes" if one.agrees else "no",
        }
        for one in examples
    ]
    return Finding(
        {"share of printed numbers that agree": make_exact(right / len(examples))},
        f"{right} of {len(examples)} printed numbers agree to the digits printed. Softmax does not change when all "
        "logits of a row are shifted, so that all five rows are the same, whatever the middle ones begin with; and a "
        "row of softmax sums to 1, the rows said to between 2 and 4. The loss is "
        f"{-(math.log(0.6) + 2 * math.log(0.7) + 3 * math.log(0.8)):.3f} with natural logarithms and "
        f"{-(math.log10(0.6) + 2 * math.log10(0.7) + 3 * math.log10(0.8)):.3f} with decimal ones.",
        table=rows,
    )


def _decide_s16(n: Numbers) -> str:
    return name_verdict(n["share of printed numbers that agree"].value == 1.0)


CLAIMS = (
    Claim(
        "S10",
        "D",
        "a 7B model has 700 billion parameters",
        "A 7B model has 700 billion parameters.",
        "Supported if the exact count of a 7B-class configuration, rounded to one digit, is 700 billion; else refuted.",
        _decide_s10,
        "Nothing but another architecture by that name: the count is exact.",
        _examine_s10,
    ),
    Claim(
        "S16",
        "A, C, E",
        "the worked examples",
        "The documents' worked examples: softmax of logits, a two-layer forward pass, a loss.",
        "Supported if every printed number is what the printed inputs give, to the digits printed; else refuted.",
        _decide_s16,
        "Other inputs than those printed: the arithmetic is exact.",
        _examine_s16,
    ),
)
