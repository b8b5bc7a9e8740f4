"""The same model in PyTorch, eager: one projection for q, k and v, scaled_dot_product_attention, fused AdamW."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from contenders import BETAS, CLIP, EPSILON, HEADS, LR, VOCAB, Contender, Shape


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(width, eps=1e-6) for _ in range(2)])
        self.q_norm, self.k_norm = (nn.RMSNorm(width // HEADS, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k = _rope(self.q_norm(q), cos, sin), _rope(self.k_norm(k), cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))


def _rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class _Model(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, shape.width)
        self.blocks = nn.ModuleList([_Block(shape.width) for _ in range(shape.depth)])
        self.norm, self.head = nn.RMSNorm(shape.width, eps=1e-6), nn.Linear(shape.width, VOCAB, bias=False)
        size = shape.width // HEADS
        angle = torch.arange(shape.context)[:, None] * 10_000.0 ** (-torch.arange(0, size, 2) / size)
        self.register_buffer("cos", torch.cos(angle))
        self.register_buffer("sin", torch.sin(angle))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def build(shape: Shape) -> Contender:
    """An eager step."""
    torch.manual_seed(0)
    model = _Model(shape)
    windows = torch.randint(0, VOCAB, (shape.batch, shape.context + 1))
    optimizer = torch.optim.AdamW(model.parameters(), LR, BETAS, EPSILON, weight_decay=0.0, fused=True)

    def call() -> float:
        loss = F.cross_entropy(model(windows[:, :-1]).reshape(-1, VOCAB), windows[:, 1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return Contender(sum(p.numel() for p in model.parameters()), 1, call)
