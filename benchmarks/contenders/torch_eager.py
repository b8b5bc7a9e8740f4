"""The same model in PyTorch, eager: one projection for q, k and v,
scaled_dot_product_attention, fused AdamW.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from contenders import BETAS, CLIP, EPSILON, LR, Contender, Shape


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.RMSNorm(width, eps=1e-6) for _ in range(2)])
        self.q_norm, self.k_norm = (
            nn.RMSNorm(width // heads, eps=1e-6) for _ in range(2)
        )
        self.qkv, self.out = (
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width, bias=False),
        )
        self.up, self.down = (
            nn.Linear(width, 4 * width, bias=False),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = (
            self.qkv(self.norms[0](x))
            .view(B, T, 3, self.heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        q, k = (
            _apply_rope(self.q_norm(q), cos, sin),
            _apply_rope(self.k_norm(k), cos, sin),
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))


def _apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(
        x.dtype
    )


class _Model(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(
            [_Block(shape.width, shape.heads) for _ in range(shape.depth)]
        )
        self.norm, self.head = (
            nn.RMSNorm(shape.width, eps=1e-6),
            nn.Linear(shape.width, shape.vocab, bias=False),
        )
        self.dtype = getattr(
            torch, shape.dtype
        )  # of the stream; of products, through autocast
        size = shape.width // shape.heads
        angle = torch.arange(shape.context)[:, None] * 10_000.0 ** (
            -torch.arange(0, size, 2) / size
        )
        self.register_buffer("cos", torch.cos(angle))
        self.register_buffer("sin", torch.sin(angle))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens).to(self.dtype)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def build_contender(shape: Shape, compiled: bool = False) -> Contender:
    """An eager step, or one whose forward and backward pass `torch.compile` made; on a
    GPU where there is one.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = (
        True  # float32 products as JAX has them by default
    )
    model = _Model(shape).to(device)
    apply = torch.compile(model) if compiled else model
    cast = torch.autocast(device, torch.bfloat16, enabled=shape.dtype == "bfloat16")
    windows = torch.randint(
        0, shape.vocab, (shape.batch, shape.context + 1), device=device
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), LR, BETAS, EPSILON, weight_decay=0.0, fused=True
    )

    def call() -> float:
        with cast:
            logits = apply(windows[:, :-1])
            loss = F.cross_entropy(
                logits.reshape(-1, shape.vocab).float(), windows[:, 1:].reshape(-1)
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return Contender(sum(p.numel() for p in model.parameters()), 1, call)
