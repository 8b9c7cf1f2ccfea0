"""`read_json` and `parse_json`: every way to be wrong is one error, of one line."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vp3d.errors import DamagedFileError
from vp3d.system import files
from vp3d.system.files import (
    JsonError,
    is_inside,
    parse_json,
    printable,
    read_json,
    read_json_object,
)

ROOT = Path(__file__).resolve().parents[2]
BAD = {
    "deep list": "[" * 200_000,
    "deep and closed": "[" * 200_000 + "]" * 200_000,
    "deep objects": '{"a":' * 200_000,
    "deeper than allowed": "[" * 101 + "]" * 101,
    "empty": "",
    "cut short": '{"a": [1, 2',
    "not a number": '{"a": NaN}',
    "infinite": "[-Infinity]",
    "too large for a float": "[1e999]",
    "thousands of digits": "[" + "9" * 5000 + "]",
    "hundreds of digits": "9" * 301,
    "text after it": "{} {}",
    "byte order mark": "\ufeff{}",
    "single quotes": "{'a': 1}",
    "control character": '"\x01"',
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_bad_json_is_one_error_of_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    for read in (
        lambda: parse_json(text),
        lambda: parse_json(text.encode()),
        lambda: read_json(path),
    ):
        with pytest.raises(JsonError) as caught:
            read()
        message = str(caught.value)
        assert "\n" not in message and len(message) < 400 and not caught.value.missing
    assert message.startswith(f"{path}: it is ")
    assert isinstance(caught.value, DamagedFileError) and caught.value.code == "damaged_file"


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(JsonError, match="is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JsonError, match="there is no such file") as caught:
        read_json(tmp_path / "a.json")
    assert caught.value.missing
    os.mkfifo(tmp_path / "pipe.json")  # to read it would wait forever
    for path in (tmp_path / "pipe.json", tmp_path, Path("/dev/zero")):
        with pytest.raises(JsonError, match="it is not a file"):
            read_json(path)
    with pytest.raises(JsonError, match="cannot be read"):
        read_json(Path("a\0.json"))
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(JsonError, match="contains a list, not a JSON object"):
        read_json_object(tmp_path / "a.json")
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 5)
    with pytest.raises(JsonError, match="6 bytes, too many"):
        read_json(tmp_path / "a.json")


def test_values_and_the_two_exceptions() -> None:
    assert parse_json('{"a": [1, -2.5, null, "é"]}') == {"a": [1, -2.5, None, "é"]}
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json("9" * 300) == int("9" * 300)
    assert parse_json("[Infinity, 1e999]", allow_nan=True) == [float("inf")] * 2
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(JsonError, match="same key twice"):
        parse_json('[{"a": 1, "a": 2}]', unique_keys=True)


def test_nothing_else_parses_json() -> None:
    """`json.load` and `json.loads` are called in one function only."""
    found = []
    for path in [*(ROOT / "vp3d").rglob("*.py"), *(ROOT / "integrations").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if ast.unparse(node) in ("json.load", "json.loads", "json.JSONDecoder"):
                found.append(path.relative_to(ROOT).as_posix())
    # the client and the add-on need nothing else, to be copied into other programs
    alone = ["integrations/blender/__init__.py", "vp3d/client.py"]
    assert sorted(set(found)) == [*alone, "vp3d/system/files.py"]


def test_names_of_files_are_bytes() -> None:
    assert printable("plain é.txt") == "plain é.txt"
    assert printable(os.fsdecode(b"a\xff\xfe.txt")) == "a\\xff\\xfe.txt"


def test_names_of_files_are_bytes_in_a_locale_without_utf_8() -> None:
    environment = os.environ | {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    code = "from vp3d.system.files import printable; print(ascii(printable('\\xe9\\udcff')))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "'\\xe9\\\\xff'\n", done.stderr


@pytest.mark.parametrize("name", ["a", "a/b.json", "./a", "a..b"])
def test_names_inside_a_folder(name: str) -> None:
    assert is_inside(name)


@pytest.mark.parametrize("name", ["", ".", "/a", "../a", "a/../../b", "a\\..\\..\\b", "a\0"])
def test_names_that_leave_a_folder(name: str) -> None:
    assert not is_inside(name)
