"""Files that others hand in: none costs much memory, and none is blamed for this machine's."""

import io
import json
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import copy_recorded, recorded_lite

from resnetlib.runs import evidence
from resnetlib.runs.evidence import Damaged, Evidence, LacksMemory, Unavailable
from resnetlib.runs.run import LARGEST_FILES, WEIGHTS

LITE = recorded_lite().path


@pytest.fixture
def folder(tmp_path):
    return copy_recorded(LITE, tmp_path / "run")


def read(folder, name):
    return Evidence(folder, lambda name: Unavailable("no data")).read(name)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")],
)
def test_weights_that_this_machine_has_no_memory_for_are_not_damaged(folder, monkeypatch, error):
    def lack(content):
        raise error

    monkeypatch.setattr(evidence, "parse_weights", lack)
    with pytest.raises(LacksMemory, match=r"model\.safetensors cannot be read: this machine"):
        read(folder, WEIGHTS)


def test_weights_too_large_for_the_card_are_evaluated_on_the_processor(digits, monkeypatch):
    """One such submission would otherwise end the grading of all."""
    real, devices = evidence.evaluate, []

    def evaluate(*given, device, **settings):
        devices.append(device)
        if device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(*given, device=device, **settings)

    monkeypatch.setattr(evidence, "evaluate", evaluate)
    monkeypatch.setattr(evidence, "choose_device", lambda _: torch.device("cuda"))
    assert len(Evidence(LITE, lambda _: digits).recomputed.labels) == len(digits.test[1])
    assert [str(device) for device in devices] == ["cuda", "cpu"]


def test_weights_that_speak_of_memory_are_damaged(folder):
    """Otherwise one file would stop the grading of all."""
    header = {"x": {"dtype": "out of memory", "shape": [1], "data_offsets": [0, 4]}}
    content = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(content)) + content + bytes(4))
    with pytest.raises(Damaged, match="out of memory"):
        read(folder, WEIGHTS)


def predictions(images, classes):
    labels = np.zeros(images, np.int64)
    names = np.array([str(number) for number in range(classes)])
    buffer = io.BytesIO()
    logits = np.zeros((images, classes), np.float32)
    np.savez_compressed(buffer, logits=logits, labels=labels, predictions=labels, classes=names)
    return buffer.getvalue()


def test_predictions_are_of_ten_classes(folder):
    """The confusion matrix of a few kilobytes with 4,000 would take hundreds of megabytes."""
    for images, classes in ((1, 4000), (5, 9), (0, 10)):
        (folder / "predictions.npz").write_bytes(predictions(images, classes))
        with pytest.raises(Damaged, match="its arrays are not those of images of 10 classes"):
            read(folder, "predictions.npz")


BOMBS = {  # files that take many times their size when they are parsed
    "run.json": b"[" + b"[]," * 2**21 + b"0]",
    "metrics.json": b"[" + b"[]," * 2**21 + b"0]",
    "history.csv": b"," * 2**20,
    "per_class.csv": b"," * 2**15,
    "confusion_matrix.csv": b"a\n" + b"," * 2**15,
    "predictions.npz": predictions(2**18, 10),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_file_takes_little_memory(folder, name):
    (folder / name).write_bytes(BOMBS[name])
    message = f"{name} is (too large|damaged: it (is too large|has more))"
    tracemalloc.start()
    try:
        with pytest.raises(Damaged, match=message):
            read(folder, name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24


def test_limits_are_far_above_the_recorded_runs():
    for name, largest in LARGEST_FILES.items():
        sizes = [path.stat().st_size for path in LITE.parents[1].glob(f"*/*/{name}")]
        assert 10 * max(sizes) < largest, name
