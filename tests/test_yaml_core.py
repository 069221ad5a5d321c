"""YAML's core schema, as text on the command line and as files."""

import math

import pytest

from resnetlib import load_experiment
from resnetlib.config import parse_value
from resnetlib.errors import ConfigError
from resnetlib.yaml_core import read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("0", 0),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("None", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("", ""),
        ("crop,flip", "crop,flip"),
        ("2,2,2", [2, 2, 2]),
        ("0.9, 0.999", [0.9, 0.999]),
        ("3,", [3]),
        ("2,2,x", "2,2,x"),
        ("[1,2]", [1, 2]),
        ("[]", []),
        ("{a: b}", {"a": "b"}),
        ("{'name': 'adam', 'lr': 0.1}", {"name": "adam", "lr": 0.1}),
        ("'040'", "040"),
        ("../data", "../data"),
        ("C:\\data: new", "C:\\data: new"),
    ],
)
def test_parse_value_follows_the_core_schema(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_parse_value_reads_nan_as_a_number():
    assert all(math.isnan(parse_value(text)) for text in ("nan", ".nan", "NaN"))


UNREADABLE = [
    ("040", "no leading zeros"),
    ("-007.5", "no leading zeros"),
    ("2,02", "no leading zeros"),
    ("9" * 5000, "a whole number of 5,000 characters"),
    ("[" * 5000, "nested more than 20 levels"),
    ("[&a [1], *a]", "aliases are not supported"),
    ("{<<: {a: 1}}", "merge keys are not supported"),
    ("[!!python/name:os.system x]", "tags such as"),
    ("{a: 1, a: 2}", "key 'a' is specified twice"),
    ("{1: 2}", "a key must be a name"),
    ("{[1]: 2}", "a key must be a name"),
    ("[1, 2", "expected ',' or ']'"),
    ("[\0]", "#x0000"),
    ("[" + "x" * 100_000 + "]", "more than 50,000 characters"),
]


@pytest.mark.parametrize(("text", "message"), UNREADABLE, ids=lambda text: text[:20])
def test_unreadable_yaml_is_refused_in_a_short_line(text, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse_value(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)
    path = tmp_path / "mine.yaml"
    path.write_text(f"variant: mine\nwidths: {text}\n")
    if "," not in text[:2]:  # a list without brackets is text in a file
        with pytest.raises(ConfigError) as caught:
            load_experiment(path)
        assert str(caught.value).startswith(f"{path} is not valid YAML: ")
        assert message in str(caught.value)


def test_variant_file_with_alias_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.yaml"
    lines = [
        f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    path.write_text("a: &a [x]\n" + "\n".join(lines))
    with pytest.raises(ConfigError, match="line 1: anchors and aliases are not supported"):
        load_experiment(path)


def test_variant_file_with_two_equal_keys_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("variant: a\nvariant: b\n")
    with pytest.raises(ConfigError, match="line 2: key 'variant' is specified twice"):
        load_experiment(path)


def test_variant_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML: it is not UTF-8 text"):
        load_experiment(path)


@pytest.mark.parametrize(
    "text", ["1e3", "1.", "nan", "040", "yes", "~", "", "1:30", "a: b", "é", "<<", "*x"]
)
def test_write_yaml_quotes_what_would_be_read_otherwise(text):
    assert read_yaml(write_yaml({"title": text})) == {"title": text}
