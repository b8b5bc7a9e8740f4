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
"""Parameters of a 7B model according to document D (the modules of a 7B model)."""

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
    model = SEVEN_B
    counts = count_parameters(model)
    embedding = model.vocab * model.width
    layers = counts.n_matmul - embedding
    parts = {
        "matrices of 32 layers": layers,
        "gains of the norms": counts.n_total - layers - 2 * embedding,
        "token embedding": embedding,
        "output head": embedding,
        "all": counts.n_total,
        "said": int(SAID_PARAMETERS),
    }
    return Finding(
        numbers={"parameters": make_exact(counts.n_total)},
        remark=(
            f"Width {model.width}, {model.depth} layers, {model.n_heads} heads, gated "
            f"feed-forward of {model.d_ff:,}, vocabulary {model.vocab:,}, RMSNorm, "
            "head not tied. The count is the one that the library uses everywhere. "
            f"Said is {SAID_PARAMETERS / counts.n_total:.0f} times as much: the B of "
            "7B is 10^9."
        ),
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
    """One number that a document prints, and the same number recomputed.

    Attributes:
        document: the letter of the document.
        quantity: what the number is.
        said: the number as printed.
        recomputed: what the printed inputs give.
    """

    document: str
    quantity: str
    said: float
    recomputed: float

    @property
    def agrees(self) -> bool:
        """Whether the recomputed number, rounded to the printed digits, is the printed
        one.
        """
        _, _, fraction = repr(float(self.said)).partition(".")
        decimals = 0 if fraction == "0" else len(fraction)
        return abs(self.recomputed - self.said) <= 0.5000001 * 10.0**-decimals


def _recompute_softmax() -> list[Example]:
    """Document A (principles and scaling laws): the softmax of five rows of logits in
    steps of 5, and a loss of given probabilities.
    """
    first_logits = (31, 37, 43, 49, 55)
    logits = jnp.asarray(
        [[start + 5.0 * i for i in range(5)] for start in first_logits]
    )
    rows = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)
    examples = []
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            examples.append(
                Example(
                    document="A",
                    quantity=f"softmax, row {i + 1}, entry {j + 1}",
                    # Each printed row and column begins a tenth higher.
                    said=round(0.1 * (2 + i + j), 1),
                    recomputed=float(value),
                )
            )
    labels = jnp.asarray([1.0, 2.0, 3.0])
    probabilities = jnp.asarray([0.6, 0.7, 0.8])
    examples.append(
        Example(
            document="A",
            quantity="-1 log .6 - 2 log .7 - 3 log .8",
            said=0.42,
            recomputed=-float((labels * jnp.log(probabilities)).sum()),
        )
    )
    return examples


def _recompute_forward_pass() -> list[Example]:
    """Document C (inference): h1 = W1 x + b1, and h2 = W2 a1 + b2 from the printed a1."""
    x = jnp.asarray([1.0, 2, 3])
    W1 = jnp.asarray([[1.0, 2, 3], [4, 5, 6]])
    b1 = jnp.asarray([1.0, 2])
    a1 = jnp.asarray([14.0, 29])
    W2 = jnp.asarray([[7.0, 8], [9, 10]])
    b2 = jnp.asarray([3.0, 4])
    h1 = W1 @ x + b1
    h2 = W2 @ a1 + b2
    layers = (
        ("h1", (14.0, 29.0), h1),
        ("h2 from a1 = [14, 29]", (249.0, 390.0), h2),
    )
    examples = []
    for name, printed, recomputed in layers:
        for i, said in enumerate(printed):
            examples.append(
                Example(
                    document="C",
                    quantity=f"{name}, entry {i + 1}",
                    said=said,
                    recomputed=float(recomputed[i]),
                )
            )
    return examples


def _recompute_unit() -> list[Example]:
    """Document E (unit scaling): one unit whose weights and bias are .1, its ReLU, and
    a squared error.
    """
    z = jnp.full(3, 0.1) @ jnp.asarray([1.0, 2, 3]) + 0.1
    residual = jnp.asarray([1.0, 0.0]) - jnp.asarray([0.3, 0.7])
    return [
        Example(
            document="E",
            quantity="z = w.x + b",
            said=0.6,
            recomputed=float(z),
        ),
        Example(
            document="E",
            quantity="ReLU of the z said, .6",
            said=0.0,
            recomputed=float(jax.nn.relu(0.6)),
        ),
        Example(
            document="E",
            quantity="half the sum of squares of y - yhat",
            said=0.2,
            recomputed=float(0.5 * jnp.square(residual).sum()),
        ),
    ]


def recompute_worked_examples() -> list[Example]:
    """Every printed number of the documents' worked examples, beside what JAX makes of
    the same inputs.
    """
    return [*_recompute_softmax(), *_recompute_forward_pass(), *_recompute_unit()]


def _examine_s16(evidence: Evidence) -> Finding:
    examples = recompute_worked_examples()
    n_right = sum(example.agrees for example in examples)
    natural_loss = -(math.log(0.6) + 2 * math.log(0.7) + 3 * math.log(0.8))
    decimal_loss = -(math.log10(0.6) + 2 * math.log10(0.7) + 3 * math.log10(0.8))
    rows: list[Row] = [
        {
            "document": example.document,
            "quantity": example.quantity,
            "said": f"{example.said:g}",
            "recomputed": f"{example.recomputed:.4g}",
            "agrees": "yes" if example.agrees else "no",
        }
        for example in examples
    ]
    return Finding(
        numbers={
            "share of printed numbers that agree": make_exact(n_right / len(examples))
        },
        remark=(
            f"{n_right} of {len(examples)} printed numbers agree to the digits "
            "printed. Softmax does not change when all logits of a row are shifted, so "
            "that all five rows are the same, whatever the middle ones begin with; and "
            "a row of softmax sums to 1, while the printed rows sum to between 2 and "
            f"4. The loss is {natural_loss:.3f} with natural logarithms and "
            f"{decimal_loss:.3f} with decimal ones."
        ),
        table=rows,
    )


def _decide_s16(n: Numbers) -> str:
    return name_verdict(n["share of printed numbers that agree"].value == 1.0)


CLAIMS = (
    Claim(
        id="S10",
        documents="D",
        short="a 7B model has 700 billion parameters",
        statement="A 7B model has 700 billion parameters.",
        rule=(
            "Supported if the exact count of a 7B-class configuration, rounded to "
            "one digit, is 700 billion; else refuted."
        ),
        decide=_decide_s10,
        change="Nothing but another architecture by that name: the count is exact.",
        experiment=_examine_s10,
    ),
    Claim(
        id="S16",
        documents="A, C, E",
        short="the worked examples",
        statement=(
            "The documents' worked examples: softmax of logits, a two-layer forward "
            "pass, a loss."
        ),
        rule=(
            "Supported if every printed number is what the printed inputs give, to "
            "the digits printed; else refuted."
        ),
        decide=_decide_s16,
        change="Other inputs than those printed: the arithmetic is exact.",
        experiment=_examine_s16,
    ),
)
