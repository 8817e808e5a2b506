"""Whatever is in a file, reading it gives a value or one short line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from edge_sk.errors import InputError
from edge_sk.reading import parse_json, parse_yaml, read_json, read_text, read_yaml, short, to_yaml, validated
from tests.mutations import outcome

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Camera(BaseModel):
    """A small model with every kind of field."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    name: str
    width: int
    gain: float = 1.0
    lenses: list[str] = []


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


@given(values)
def test_json_reads_what_json_writes(value: object) -> None:
    assert parse_json(json.dumps(value), "here") == value


@given(values)
def test_yaml_reads_what_yaml_writes(value: object) -> None:
    read, problem = outcome(parse_yaml, to_yaml(value), "here")
    assert read == value or "aliases" in problem


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_any_bytes_give_a_value_or_one_line(read, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    value, problem = outcome(read, path)
    assert str(path) in problem or (problem == "" and len(repr(value)) < 10_000)


@given(st.text(alphabet="{}[]:,-&*!|>'\"#%@` \n\t0a<=~?."))
def test_yaml_of_its_own_signs_gives_a_value_or_one_line(text: str) -> None:
    _, problem = outcome(parse_yaml, text, "here")
    assert problem == "" or problem.startswith("here ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "'a' is there twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !nonsense 3", "could not determine a constructor"),
        ("a: !!timestamp x", "is not YAML"),
        ("a: !!bool x", "is not YAML"),
        (f"a: {'9' * 5000}", "is not YAML"),
        ("[" * 200 + "]" * 200, "levels deep"),
        ("[" * 5000 + "]" * 5000, "is not YAML"),
        ("a: [1, 2", "is not YAML"),
        ("? [1]\n: 2", "is not YAML"),
    ],
)
def test_yaml_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"^here ") as error:
        parse_yaml(text, "here")
    assert said in one_line(error)


def test_yaml_has_floats_of_version_1_2_and_no_dates() -> None:
    assert parse_yaml("{a: 4e-5, b: 1E3, c: 2026-11-26}", "here") == {"a": 4e-5, "b": 1e3, "c": "2026-11-26"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[-Infinity]", "Infinity"),
        ("9" * 5000, "is not JSON"),
        ("[" * 60 + "]" * 60, "levels deep"),
        ("[" * 100_000, "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_json_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"^here ") as error:
        parse_json(text, "here")
    assert said in one_line(error)


def test_only_regular_files_of_text_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, said in (("pipe", "not a file"), (".", "not a file"), ("none", "does not exist"), ("binary", "UTF-8")):
        with pytest.raises(InputError, match=said):
            read_text(tmp_path / name)
    with pytest.raises(InputError, match="no camera here"):
        read_json(tmp_path / "none", missing="no camera here")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"1099511627776 bytes"):
        read_text(tmp_path / "large")


@given(st.dictionaries(st.sampled_from(["name", "width", "gain", "lenses", "other"]), values) | values)
def test_a_model_takes_a_value_or_names_the_field(value: object) -> None:
    camera, problem = outcome(validated, Camera, value, "camera.json")
    assert problem.startswith("camera.json: ") if camera is None else math.isfinite(camera.gain)


def test_a_long_message_keeps_its_ends() -> None:
    with pytest.raises(InputError) as error:
        validated(Camera, {"name": 3, "width": "x" * 400_000, "lenses": list(range(5000))}, "camera.json")
    message = one_line(error)
    assert message.startswith("camera.json: name: ")
    assert message.endswith("and 4999 more")
    assert short("a" * 500 + "\n\x1b[31m\ud800", 40).isprintable()
