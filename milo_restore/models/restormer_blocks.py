"""The parts Restormer is made of: layer normalisation, transposed attention, gated feed-forward, resampling.

Source: Zamir et al., "Restormer: Efficient Transformer for High-Resolution Image Restoration", CVPR 2022, section 3.
Some convolutions are applied through their weights instead of being called, which makes training on CPUs about 1.5
times faster; forward hooks on ``project_out``, ``project_in`` and ``dwconv`` therefore do not run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_EPS = 1e-5


def layout_of(x: Tensor) -> torch.memory_format:
    """The memory layout to give results in."""
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


class ScaleByDeviation(torch.autograd.Function):
    """``x / sqrt(var(x) + eps) * weight`` over channels, the mean left in; leaner than autograd.

    Statistics are in float32 at least, whatever the input, so that autocast costs no accuracy here.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = wide.mean(1, keepdim=True)
        scale = (wide - mean).square_().mean(1, keepdim=True).add_(_EPS).rsqrt_()
        ctx.save_for_backward(x, weight, mean, scale)
        return (wide * scale).mul_(weight.view(-1, 1, 1)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, mean, scale = ctx.saved_tensors
        wide, grad, gain = x.to(mean.dtype), grad.to(mean.dtype), weight.view(-1, 1, 1)
        product = grad * wide
        grad_weight = (product * scale).sum((0, 2, 3)).to(weight.dtype)
        pull = product.mul_(gain).mean(1, keepdim=True).mul_(scale.pow(3))  # through the deviation
        grad_x = (grad * scale).mul_(gain).sub_((wide - mean).mul_(pull))
        return grad_x.to(x.dtype), grad_weight


class BiasFreeBody(nn.Module):
    """Division by the deviation over channels, and a learned gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = ScaleByDeviation.apply(x, self.weight)
        return out


class WithBiasBody(nn.Module):
    """Layer normalisation over channels, with gain and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, _EPS)
        return out.permute(0, 3, 1, 2).contiguous(memory_format=layout_of(x))


LAYER_NORMS: dict[str, type[nn.Module]] = {"BiasFree": BiasFreeBody, "WithBias": WithBiasBody}


class Norm(nn.Module):
    """Layer normalisation over the channels of every pixel."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.body = LAYER_NORMS[kind](channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def cosines(q: Tensor, k: Tensor) -> Tensor:
    """Cosine between every row of q and every row of k: (..., c, n), (..., c, n) -> (..., c, c)."""
    if q.dtype == torch.float16:  # a product of unnormalised rows may overflow
        q, k = (F.normalize(t.float(), dim=-1).to(t.dtype) for t in (q, k))
        return q @ k.transpose(-2, -1)
    # Dividing the small product by the norms spares two tensors of the size of q.
    wide = torch.promote_types(q.dtype, torch.float32)
    norm_q, norm_k = (torch.linalg.vector_norm(t, dim=-1, keepdim=True, dtype=wide).clamp_min(1e-12) for t in (q, k))
    return (q @ k.transpose(-2, -1)) / norm_q / norm_k.transpose(-2, -1)


class PlainStrideConv2d(nn.Conv2d):
    """Convolution whose weight gradient has the weight's own strides, which DDP's buckets otherwise complain about.

    In channels-last layout the axes of size 1 come back with other strides; the detour through a flat view mends it.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight.flatten().view_as(weight), bias)


class Attention(nn.Module):
    """Multi-Dconv head transposed attention: heads compare channels, so the cost is linear in the pixels."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = PlainStrideConv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = PlainStrideConv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = PlainStrideConv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv_dwconv(self.qkv(x))
        q, k, v = rearrange(qkv, "n (part head c) h w -> part n head c (h w)", part=3, head=self.heads)
        attention = (cosines(q, k) * self.temperature).softmax(-1)
        # project_out(attention v) = (project_out attention) v: the two small matrices first, then one pass over v.
        project = rearrange(self.project_out.weight, "out (head c) 1 1 -> head out c", head=self.heads)
        mix = rearrange(project @ attention, "n head out c -> n out (head c)")
        v = rearrange(v, "n head c pixels -> n (head c) pixels")
        if layout_of(qkv) == torch.channels_last:
            out = rearrange(v.mT @ mix.mT, "n (h w) out -> n out h w", h=x.shape[2])
        else:
            out = rearrange(mix @ v, "n out (h w) -> n out h w", h=x.shape[2])
        return out if self.project_out.bias is None else out + self.project_out.bias.view(-1, 1, 1)


class FeedForward(nn.Module):
    """Gated-Dconv feed-forward: one half, through GELU, gates the other."""

    def __init__(self, channels: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = PlainStrideConv2d(hidden, channels, 1, bias=bias)

    def _half(self, x: Tensor, half: int) -> Tensor:
        def pick(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.chunk(2)[half]

        x = F.conv2d(x, self.project_in.weight.chunk(2)[half], pick(self.project_in.bias))
        return F.conv2d(x, self.dwconv.weight.chunk(2)[half], pick(self.dwconv.bias), padding=1, groups=x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        # Cutting the weights in two instead of the activations spares strided reads, and a copy in the backward pass.
        out: Tensor = self.project_out(F.gelu(self._half(x, 0)) * self._half(x, 1))
        return out


class Block(nn.Module):
    """Attention, then feed-forward, each after a normalisation and with a skip connection."""

    def __init__(self, channels: int, heads: int, expansion: float, bias: bool, norm: str) -> None:
        super().__init__()
        self.norm1 = Norm(channels, norm)
        self.attn = Attention(channels, heads, bias)
        self.norm2 = Norm(channels, norm)
        self.ffn = FeedForward(channels, int(channels * expansion), bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


class Embed(nn.Module):
    """The first 3x3 convolution, from image to features."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class Resample(nn.Module):
    """3x3 convolution and pixel (un)shuffle: half the size and twice the channels, or the other way round."""

    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        width, shuffle = (channels // 2, nn.PixelUnshuffle(2)) if down else (2 * channels, nn.PixelShuffle(2))
        self.body = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out
