"""The rotation table of rotary position embeddings, number for number as transformers computes it."""

from __future__ import annotations

import math

import torch

from mpklab.models.config import Config


def inverse_frequencies(config: Config) -> torch.Tensor:
    """Radians per position of each rotated pair, float32 [head_dim / 2].

    The order of the float32 operations is that of transformers' `modeling_rope_utils` (default and llama3): a table in
    higher precision would be closer to the truth and further from the model people compare with.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    plain = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    wavelength = 2 * math.pi / plain
    context, low, high = scaling.original_max_position, scaling.low_freq_factor, scaling.high_freq_factor
    scaled = torch.where(wavelength > context / low, plain / scaling.factor, plain)
    smooth = (context / wavelength - low) / (high - low)
    ramp = (1 - smooth) * scaled / scaling.factor + smooth * scaled
    between = (wavelength >= context / high) & (wavelength <= context / low)
    return torch.where(between, ramp, scaled)


def rope_table(config: Config, context: int) -> torch.Tensor:
    """cos and sin of every position below `context`, float32 [context, head_dim]: cosines first, then sines."""
    angles = torch.arange(context, dtype=torch.float32)[:, None] * inverse_frequencies(config)
    return torch.cat((angles.cos(), angles.sin()), dim=1)
