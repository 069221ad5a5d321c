"""Predictions of a run: the classes of pictures, and recorded weights in a network of one's own."""

import os
import re
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import PROJECT, recorded_lite
from PIL import Image

from resnetlib import load_pretrained
from resnetlib.cli import main
from resnetlib.errors import ConfigError, DataError, RunError
from resnetlib.runs.prediction import FORMATS, predict_pictures, read_picture


@pytest.fixture
def pictures(cifar10, tmp_path):
    """The first three test images as files."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, cifar10.test[0], strict=False):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


@pytest.mark.slow
def test_predict_pictures_is_the_evaluation_of_the_run(cifar10, pictures):
    run = recorded_lite()
    shares, labels = run.evaluation.logits[:3].double().softmax(1).topk(3)
    for row, (found, expected) in enumerate(
        zip(predict_pictures(run, pictures), labels.tolist(), strict=True)
    ):
        assert [name for name, _ in found] == [cifar10.classes[label] for label in expected]
        assert [share for _, share in found] == pytest.approx(shares[row].tolist(), abs=0.01)


def test_predict_command(pictures):
    done = CliRunner().invoke(main, ["predict", "lite", *map(str, pictures)])
    lines = done.output.splitlines()
    assert done.exit_code == 0 and len(lines) == 3
    assert re.search(r"0\.png: cat \d+\.\d%, \w+ \d+\.\d%, \w+ \d+\.\d%$", lines[0])


def test_predict_command_takes_a_network_of_cifar10(pictures, monkeypatch):
    """The user's newest run of the variant may be one of the digits."""
    find = Mock(side_effect=RunError("none"))
    monkeypatch.setattr("resnetlib.runs.find.find_run", find)
    CliRunner().invoke(main, ["predict", "lite", str(pictures[0])])
    find.assert_called_once_with("lite", dataset="cifar10")


def test_predict_command_refuses_other_files(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("text")
    done = CliRunner().invoke(main, ["predict", "lite", str(path)])
    assert done.exit_code == 1
    assert re.fullmatch(
        r"Error: \S+text\.png is not a readable picture: its format is none of PNG, .*\n",
        done.output,
    )
    assert CliRunner().invoke(main, ["predict", "lite", str(tmp_path / "no.png")]).exit_code == 2


def test_read_picture_starts_no_other_program(tmp_path, monkeypatch):
    """An EPS file is a program for Ghostscript."""
    Image.new("RGB", (32, 32)).save(tmp_path / "cat.jpg", format="EPS")
    start = Mock(side_effect=OSError("Ghostscript was started"))
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", start)
    with pytest.raises(DataError, match=r"cat\.jpg is not a readable picture: its format is none"):
        read_picture(tmp_path / "cat.jpg")
    start.assert_not_called()


def test_read_picture_refuses_the_home_of_an_unknown_user():
    with pytest.raises(ConfigError, match=r"^'~nosuchuser/a\.png': there is no such user$"):
        read_picture("~nosuchuser/a.png")


@pytest.mark.parametrize("kind", FORMATS)
def test_read_picture_knows_the_usual_formats(kind, tmp_path):
    Image.new("RGB", (40, 40), (200, 100, 50)).save(tmp_path / "picture", format=kind)
    means = read_picture(tmp_path / "picture").float().mean((1, 2)).tolist()
    assert means == pytest.approx([200, 100, 50], abs=3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "1"])
def test_read_picture_resizes_to_rgb(mode, tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 48), (200, 200, 200)).convert(mode).save(path)
    picture = read_picture(path)
    assert (picture.dtype, picture.shape) == (torch.uint8, (3, 32, 32))
    assert picture.float().mean() == pytest.approx(200, abs=60)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_read_picture_shows_transparent_pixels_white(mode, tmp_path):
    """Whatever colour is stored under them."""
    path = tmp_path / "picture.png"
    hidden = Image.new("RGBA", (40, 40), (200, 0, 0, 0)).convert(mode)
    hidden.save(path, **({"transparency": hidden.getpixel((0, 0))} if mode == "P" else {}))
    assert (read_picture(path) == 255).all()


def test_read_picture_turns_a_photograph_upright(tmp_path):
    picture = Image.new("RGB", (32, 32))
    picture.paste((255, 255, 255), (0, 0, 32, 16))  # the upper half is white
    turned = Image.Exif()
    turned[0x0112] = 3  # by half a turn
    picture.save(tmp_path / "picture.png", exif=turned)
    read = read_picture(tmp_path / "picture.png").float()
    assert read[:, :16].max() == 0 and read[:, 16:].min() == 255


def test_read_picture_refuses_a_huge_one(tmp_path, monkeypatch):
    Image.new("1", (2000, 2000)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"huge\.png is not a readable picture: Image size"):
        read_picture(tmp_path / "huge.png")


def test_pretrained_weights_fit_a_network_by_hand():
    """The one in docs/imports.md, as it is printed there."""
    text = (PROJECT / "docs" / "imports.md").read_text()
    (program,) = re.findall(r"```python\n(import torch\.nn.*?)```", text, re.DOTALL)
    names = {}
    exec(program, names)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(names["network"](images), load_pretrained("lite")(images))


def test_read_picture_scales_16_bits(tmp_path):
    levels = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    expected = torch.from_numpy((levels // 256).astype(np.uint8))
    assert (read_picture(tmp_path / "deep.png") == expected).all()


def test_read_picture_refuses_what_has_no_levels(tmp_path):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "real.tif")
    with pytest.raises(DataError, match="floating-point pixels are not supported"):
        read_picture(tmp_path / "real.tif")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="it is not a regular file"):
        read_picture(tmp_path / "pipe.png")
