"""Sequential and permuted MNIST: handwritten digits pixel by pixel."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from everstep.data.readers.number_formats import read_idx
from everstep.errors import DataError
from everstep.lab.synthetic.predictor import Predictor, losses
from everstep.lab.synthetic.problem import Kind, Problem, Sequences

Array = NDArray[Any]
PERMUTATION_SEED = 0
CLASSES = 10
_MEAN, _DEVIATION = 0.1307, 0.3081  # of the 47,040,000 training pixels, divided by 255
_NAMES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True, eq=False)
class PixelImages(Problem):
    """Images read pixel by pixel, row by row, with the class as target after the last step (Le 2015).

    Both a problem for `Predictor` and `Batches` for `fit`; every epoch has all images once, in a new order.

    The first epochs may use coarser images with k² times fewer steps, so that few epochs of full images suffice (a
    curriculum, Bengio et al. 2009). In row order, k × k pixels are averaged; in another order, every k²-th pixel of the
    order is read.

    Attributes:
        images: (N, R, C) uint8; the network sees `standardised` pixels, T = R·C of them.
        labels: (N,) uint8.
        batch_size: images in a batch; the last batch of an epoch may be smaller.
        seed: seed of the order of images.
        order: (T,) the order of pixels; row by row if None.
        coarse: k for each of the first epochs; later epochs have k = 1.
        baseline: ln 10.

    Raises:
        ValueError: some k does not divide R and C.
    """

    images: Array
    labels: Array
    batch_size: int = 64
    seed: int = 0
    order: Array | None = None
    coarse: tuple[int, ...] = ()
    kind: ClassVar[Kind] = "class"
    carries_state: ClassVar[bool] = False
    input_size = 1
    outputs = CLASSES
    baseline = math.log(CLASSES)

    def __post_init__(self) -> None:
        rows, columns = self.images.shape[1:]
        for k in self.coarse:
            if k < 1 or rows % k or columns % k:
                raise ValueError(f"PixelImages: coarse should divide {rows} × {columns} pixels, but {k} does not")

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def batch(self, epoch: int, index: int) -> Sequences:  # type: ignore[override]
        """Batch `index` of `epoch`: inputs (B, T/k², 1) and classes (B, 1); depends on its arguments alone."""
        order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.images))
        k = self.coarse[epoch] if epoch < len(self.coarse) else 1
        return self.rows(order[index * self.batch_size : (index + 1) * self.batch_size], k)

    def rows(self, places: Array | slice, k: int = 1) -> Sequences:
        """The images with indices `places`, reduced by k in both directions."""
        pixels = standardised(self.images[places])
        if self.order is not None:
            pixels = pixels.flatten(1)[:, torch.from_numpy(self.order[:: k * k])]
        elif k > 1:
            pixels = F.avg_pool2d(pixels, k)
        targets = torch.from_numpy(self.labels[places].astype(np.int64))[:, None]
        return Sequences(pixels.flatten(1)[..., None], targets, None, None, 0, 0)

    def parted(self, held_out: int) -> tuple[PixelImages, PixelImages]:
        """Split into all but the last `held_out` images, and these.

        Raises:
            ValueError: a part would be empty.
        """
        if not 0 < held_out < len(self.images):
            raise ValueError(f"PixelImages: held_out should be in 1 … {len(self.images) - 1}, but is {held_out}")
        cut = len(self.images) - held_out
        first, last = (
            replace(self, images=self.images[part], labels=self.labels[part]) for part in (slice(cut), slice(cut, None))
        )
        return first, last


def standardised(pixels: Array) -> Tensor:
    """Pixels (bytes) minus the mean of MNIST's training pixels, divided by their standard deviation; float32."""
    return (torch.from_numpy(pixels.astype(np.float32)) / 255 - _MEAN) / _DEVIATION


def sequential_mnist(
    split: str = "train",
    *,
    permuted: bool = False,
    folder: Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
    coarse: tuple[int, ...] = (),
) -> PixelImages:
    """MNIST (LeCun 1998) as sequences of 784 pixels, row by row or in a fixed random order (Le 2015).

    Args:
        split: "train" (60,000 images) or "test" (10,000).
        permuted: whether to use the order `permutation(784)`.
        folder: the folder of the four `*-ubyte.gz` files; `$EVERSTEP_DATA/mnist` if None.
        batch_size, seed, coarse: see `PixelImages`.

    Raises:
        ValueError: another split, or a `coarse` that does not divide the sides of the images.
        DataError: a file is missing, damaged, or not an IDX file of the expected kind.
    """
    if split not in _NAMES:
        raise ValueError(f"sequential_mnist: split should be train or test, but is {split!r}")
    if folder is None:
        folder = Path(os.environ.get("EVERSTEP_DATA", "")) / "mnist"
    images = _held(folder / f"{_NAMES[split]}-images-idx3-ubyte.gz", 3)
    labels = _held(folder / f"{_NAMES[split]}-labels-idx1-ubyte.gz", 1)
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{folder}: the {split} split has {len(images)} images but {len(labels)} labels")
    order = permutation(images[0].size) if permuted else None
    return PixelImages(images, labels, batch_size, seed, order, coarse)


def permutation(size: int, seed: int = PERMUTATION_SEED) -> Array:
    """The fixed order of permuted MNIST, from NumPy's PCG64. Papers differ in their permutations.

    >>> permutation(784)[:4].tolist()
    [318, 2, 606, 446]
    """
    order: Array = np.random.Generator(np.random.PCG64(seed)).permutation(size)
    return order


def _held(path: Path, dimensions: int) -> Array:
    if not path.is_file():
        hint = "" if os.environ.get("EVERSTEP_DATA") else "; EVERSTEP_DATA is not set: it names the folder of data sets"
        raise DataError(f"{path} is missing: expected an IDX file of MNIST, packed by gzip{hint}")
    return read_idx(path, dimensions)


def evaluate(model: Predictor, images: PixelImages, chunk: int = 500) -> tuple[float, float]:
    """Mean loss in nats and accuracy over all images; the model's mode is restored."""
    training = model.training
    model.eval()
    nats = right = 0.0
    with torch.no_grad():
        for start in range(0, len(images.images), chunk):
            batch = images.rows(slice(start, start + chunk))
            answers = model(batch)
            nats += float(losses(model, batch, answers).sum())
            right += float((answers.argmax(-1) == batch.targets).sum())
    model.train(training)
    return nats / len(images.images), right / len(images.images)
