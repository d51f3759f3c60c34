"""MNIST pixel by pixel: the files are read whole, every image once an epoch, in one order for all."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import everstep as es
from everstep.errors import DataError
from everstep.lab.synthetic import Predictor, objective
from everstep.lab.synthetic.mnist import PixelImages, evaluate, permutation, sequential_mnist
from everstep.learn import FitSettings


def written(folder: Path, images: np.ndarray, labels: np.ndarray, split: str = "train") -> Path:
    for name, magic, array in (("images-idx3", 0x0803, images), ("labels-idx1", 0x0801, labels)):
        header = struct.pack(f">{1 + array.ndim}I", magic, *array.shape)
        (folder / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    return folder


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    return written(tmp_path, random.integers(0, 256, (7, 4, 3)), np.arange(7))


def test_pixels_come_in_the_order_of_reading(digits: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (7, 4, 3))
    images = sequential_mnist(folder=digits, batch_size=3)
    batch = images.rows(slice(None))
    assert batch.inputs.shape == (7, 12, 1)
    bytes_again = (batch.inputs[..., 0] * 0.3081 + 0.1307) * 255
    assert torch.equal(bytes_again.round().int(), torch.from_numpy(raw).view(7, 12).int())
    assert batch.targets.tolist() == [[k] for k in range(7)]
    assert batch.count == 7
    permuted = sequential_mnist(folder=digits, permuted=True).rows(slice(None))
    assert torch.equal(permuted.inputs, batch.inputs[:, permutation(12)])
    assert sorted(permutation(784)) == list(range(784))


def test_coarse_images_come_first(digits: Path) -> None:
    fine = sequential_mnist(folder=digits, batch_size=7)
    with pytest.raises(ValueError, match="coarse should divide 4 × 3 pixels, but 2 does not"):
        sequential_mnist(folder=digits, coarse=(2,))
    images = PixelImages(fine.images[:, :, :2], fine.labels, 7, coarse=(2,))
    whole = images.rows(slice(None)).inputs.view(7, 2, 2, 2)
    assert images.batch(1, 0).inputs.shape == (7, 8, 1)
    coarse = images.batch(0, 0)
    places = coarse.targets[:, 0]
    torch.testing.assert_close(coarse.inputs, whole.mean((2, 3))[places][..., None])
    order = permutation(8)
    permuted = PixelImages(images.images, images.labels, 7, order=order, coarse=(2,))
    assert torch.equal(permuted.batch(0, 0).inputs[..., 0], whole.view(7, 8)[:, order[::4]][places])


def test_every_image_once_an_epoch_in_another_order(digits: Path) -> None:
    images = sequential_mnist(folder=digits, batch_size=3, seed=5)
    assert len(images) == 3
    epochs = [[int(k) for i in range(3) for k in images.batch(epoch, i).targets] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert torch.equal(
        images.batch(2, 1).inputs, sequential_mnist(folder=digits, batch_size=3, seed=5).batch(2, 1).inputs
    )
    train, held_out = images.parted(2)
    assert (train.labels.tolist(), held_out.labels.tolist()) == ([0, 1, 2, 3, 4], [5, 6])
    for wrong in (0, 7):
        with pytest.raises(ValueError, match=f"held_out should be in 1 … 6, but is {wrong}"):
            images.parted(wrong)


def test_what_cannot_be_read(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="train or test, but is 'valid'"):
        sequential_mnist("valid")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz is missing: expected an IDX file of MNIST"):
        sequential_mnist("test", folder=digits)
    monkeypatch.delenv("EVERSTEP_DATA", raising=False)
    with pytest.raises(DataError, match="EVERSTEP_DATA is not set"):
        sequential_mnist(folder=tmp_path / "nowhere")
    path = digits / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for damaged in (whole[:40], b"plain", gzip.compress(gzip.decompress(whole)[:-1]), gzip.compress(b"")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged"):
            sequential_mnist(folder=digits)
    written(digits, np.zeros((6, 4, 3)), np.arange(7))
    with pytest.raises(DataError, match="6 images but 7 labels"):
        sequential_mnist(folder=digits)


def test_a_network_learns_them(tmp_path: Path) -> None:
    labels = np.arange(32, dtype=np.uint8) % 8
    images = PixelImages(np.eye(8, dtype=np.uint8)[labels, None] * 255, labels, 8)
    model = Predictor(es.GRU(1, 16), images)
    settings = FitSettings(max_epochs=60, learning_rate=1e-2, schedule="constant", clip_norm=None, precision="float32")
    es.fit(model, objective, images, settings, out=tmp_path, log=lambda line: None)
    nats, right = evaluate(model, images, chunk=5)
    assert right == 1
    assert nats < 0.3
    assert model.training


def test_mnist_itself(shared_data: Path) -> None:
    if not (shared_data / "mnist").is_dir():
        pytest.skip("MNIST is not there")
    test = sequential_mnist("test", folder=shared_data / "mnist")
    assert test.images.shape == (10_000, 28, 28)
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert int(test.rows(slice(0, 1)).inputs.gt(-0.42).sum()) == np.count_nonzero(test.images[0])
