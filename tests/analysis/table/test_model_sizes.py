"""Parameters of published models are those that their files hold, and FLOPs are those
that the trainer counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import analysis
from scaling import ModelConfig
from scaling.model.flops import count_parameters, flops_per_token

CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": (
        {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
        124_439_808,
    ),
    "gpt2-xl": (
        {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257, "n_positions": 1024},
        1_557_611_200,
    ),
    "pythia-160m": (
        {
            "model_type": "gpt_neox", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "vocab_size": 50304, "tie_word_embeddings": False,
        },
        162_322_944,
    ),
    "Llama-2-7b": (
        {
            "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
            "intermediate_size": 11008, "vocab_size": 32000,
        },
        6_738_415_616,
    ),
    "Meta-Llama-3-8B": (
        {
            "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
        },
        8_030_261_248,
    ),
    "Mistral-7B": (
        {
            "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
        },
        7_241_732_096,
    ),
    "Mixtral-8x7B": (
        {
            "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
            "num_local_experts": 8, "num_experts_per_tok": 2,
        },
        46_702_792_704,
    ),
    "Qwen2.5-0.5B": (
        {
            "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True,
        },
        494_032_768,
    ),
    "Qwen3-0.6B": (
        {
            "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        596_049_920,
    ),
    "Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
            "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936, "tie_word_embeddings": False,
        },
        30_532_122_624,
    ),
    "gemma-2-2b": (
        {
            "model_type": "gemma2", "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 9216, "vocab_size": 256000,
        },
        2_614_341_888,
    ),
    "OLMoE-1B-7B": (
        {
            "model_type": "olmoe", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
            "num_key_value_heads": 16, "intermediate_size": 1024, "vocab_size": 50304,
            "num_experts": 64, "num_experts_per_tok": 8,
        },
        6_919_161_856,
    ),
}  # fmt: skip
"""What matters of the config.json of published models, and how many parameters their
files hold."""


@pytest.mark.parametrize("name", CONFIGS)
def test_published_models_have_their_parameters(name: str, tmp_path: Path) -> None:
    config, published = CONFIGS[name]
    assert analysis.count_parameters(config).n_total == published
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert analysis.count_parameters(tmp_path).n_total == published
    assert analysis.count_parameters(tmp_path / "config.json").n_total == published


def test_a_token_of_mixtral_uses_two_experts_of_eight() -> None:
    found = analysis.count_parameters(CONFIGS["Mixtral-8x7B"][0])
    expert = 3 * 4096 * 14336
    assert found.n_total - found.n_active == 32 * 6 * expert
    assert found.n_active == 12_879_925_248
    assert found.n_matmul < found.n_active


def test_conventions_of_gpt2() -> None:
    found = analysis.count_parameters(
        "gpt2", width=768, depth=12, heads=12, vocab=50257
    )
    assert found.kaplan == 84_934_656
    assert found.n_non_embedding == found.n_total - (50257 + 1024) * 768
    assert found.n_matmul == found.kaplan + 50257 * 768
    assert found.n_active == found.n_total


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_counts_are_those_of_the_models_that_are_trained(
    tied: bool, kv_heads: int
) -> None:
    """A model of this library with the parts of Llama, and its training FLOPs."""
    config = ModelConfig(
        width=64,
        depth=3,
        n_heads=4,
        head_dim=16,
        n_kv_heads=kv_heads,
        vocab=512,
        context=128,
        activation="swiglu",
        ff_ratio=2.5,
        qk_norm=False,
        tied=tied,
    )
    trained = count_parameters(config)
    found = analysis.count_parameters(
        "llama-like",
        width=64,
        depth=3,
        heads=4,
        kv_heads=kv_heads,
        vocab=512,
        d_ff=160,
        tied=tied,
    )
    assert found.n_total == trained.n_total
    assert found.n_non_embedding == trained.n_non_embedding
    assert found.n_matmul == trained.n_matmul
    assert found.flops_per_token(128) == pytest.approx(flops_per_token(config))


def test_attention_counts_beside_6_n() -> None:
    """As PaLM counts: 6 N + 12 x layers x heads x head dimension x context."""
    found = analysis.count_parameters(CONFIGS["Llama-2-7b"][0])
    flops = found.flops_per_token(4096, causal=False)
    assert flops == 6 * found.n_matmul + 12 * 32 * 4096 * 4096
    assert found.flops_per_token(4096, causal=False, training=False) == flops / 3


@pytest.mark.parametrize(
    ("source", "sizes", "message"),
    [
        ("lama", {}, "did you mean llama"),
        ("llama", {"width": 64, "depth": 2}, "sizes are missing: give heads, vocab"),
        ("llama", {"widht": 64}, "did you mean width"),
        (
            "llama",
            {"width": 64, "depth": 2, "heads": 4, "vocab": 100},
            "d_ff is missing",
        ),
        (
            "gpt2",
            {"width": 0, "depth": 2, "heads": 4, "vocab": 100},
            "width is 0; give a whole number",
        ),
        (
            "gpt2",
            {"width": 65, "depth": 2, "heads": 4, "vocab": 100},
            "no multiple of heads 4; give head_dim",
        ),
        (
            "mixtral",
            {
                "width": 64,
                "depth": 2,
                "heads": 4,
                "vocab": 100,
                "d_ff": 8,
                "experts": 8,
            },
            "experts is 8 and experts_per_token is 0",
        ),
        ({"hidden_size": 64}, {}, "has no model_type"),
        ({"model_type": "deepseek_v3"}, {}, "model family 'deepseek_v3'"),
        (
            {**CONFIGS["Qwen3-30B-A3B"][0], "mlp_only_layers": [0]},
            {},
            "whose layers differ are not counted",
        ),
    ],
)
def test_what_cannot_be_counted_says_why(
    source: Any, sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.count_parameters(source, **sizes)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json at"):
        analysis.count_parameters(tmp_path / "nothing.json")


def test_the_counts_are_printed_with_what_they_count() -> None:
    text = str(analysis.count_parameters(CONFIGS["gpt2"][0]))
    assert "124,439,808  every parameter" in text
