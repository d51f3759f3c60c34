"""Log-mel features: how loud each band of frequencies is, every ten milliseconds."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.errors import ConfigError

LEAST = 1e-10
"""The energy below which a band is silent."""


def mel_filters(bands: int, rate: int, size: int) -> Tensor:
    """Triangles that sum powers of frequencies into bands, (size // 2 + 1, bands).

    mel(f) = 2595 log₁₀(1 + f / 700). With m_0 < … < m_{B+1} equally spaced from 0 to mel(rate / 2), band b rises from 0
    at m_{b-1} to 1 at m_b and falls to 0 at m_{b+1}, linearly in mel.

    Args:
        bands: B.
        rate: samples a second.
        size: N of the Fourier transform.

    Raises:
        ConfigError: a band is so narrow that no frequency is in it.
    """
    frequencies = torch.arange(size // 2 + 1, dtype=torch.float64) * rate / size
    mels = 2595 * torch.log10(1 + frequencies / 700)
    step = 2595 * math.log10(1 + rate / 1400) / (bands + 1)
    centres = step * torch.arange(1, bands + 1)
    filters = (1 - (mels[:, None] - centres).abs() / step).clamp_min(0)
    if len(empty := (filters.sum(0) == 0).nonzero()):
        raise ConfigError(
            f"{bands} bands of windows of {size} samples at {rate} a second: band {int(empty[0]) + 1} holds no "
            "frequency; ask for fewer (data.bands) or longer windows (data.window_ms)"
        )
    return filters


@lru_cache(8)
def _tables(bands: int, rate: int, window: int, size: int) -> tuple[Tensor, Tensor]:
    return torch.hann_window(window, dtype=torch.float64), mel_filters(bands, rate, size)


def log_mel(samples: Tensor, rate: int, bands: int = 40, window_ms: float = 25.0, hop_ms: float = 10.0) -> Tensor:
    """ln of the energy of B bands in windows of a recording, (T, B) float32.

    Window t holds W samples from t · H on, and T = 1 + ⌊(n − W) / H⌋; a recording shorter than W is padded by zeros to
    one window. With w the Hann window 0.5 − 0.5 cos(2π i / W) and N the least power of two ≥ W:
    P_t(k) = |Σ_i w_i x_{tH+i} e^(−2πj ik / N)|², E_t(b) = Σ_k P_t(k) F_kb with F of `mel_filters`, and the result is
    ln max(E_t(b), 1e-10).

    Args:
        samples: (n,) in −1 … 1.
        rate: samples a second.
        bands: B.
        window_ms, hop_ms: W and H in milliseconds.
    """
    window, hop = (max(1, round(rate * ms / 1000)) for ms in (window_ms, hop_ms))
    size = 1 << (window - 1).bit_length()
    weights, filters = _tables(bands, rate, window, size)
    padded = F.pad(samples.double(), (0, max(0, window - len(samples))))
    spectra = torch.fft.rfft(padded.unfold(0, window, hop) * weights, size)
    energies: Tensor = spectra.abs().square() @ filters
    return energies.clamp_min(LEAST).log().float()
