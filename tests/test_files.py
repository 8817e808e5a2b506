from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sk.errors import InputError, require, script
from edge_sk.files import artifact_path, atomic_write, file_digest, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    with atomic_write(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(target) as temporary:
        temporary.write_text(f"half {1 // 0}")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        write_text(tmp_path / "record.json", "{}")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "record.json").stat().st_mode) == 0o666 & ~0o027


def test_text_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    code = "import sys; from edge_sk.files import write_text; write_text(sys.argv[1], 'gr\\xfcn')"
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-X", "utf8=0", "-c", code, tmp_path / "record.json"], env=environment, check=True)
    assert (tmp_path / "record.json").read_bytes() == b"gr\xc3\xbcn"


def test_names_keep_their_width() -> None:
    assert artifact_path("out", "sk_shufflenetv2_1.0", ".pte") == Path("out/sk_shufflenetv2_1.0.pte")


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (InputError("x is 3; use 4"), 2, "error: x is 3; use 4\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pte"), 1, "error: No space left on device: a.pte; free"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_scripts_answer_with_one_line(
    raised: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @script
    def main(argv: object = None) -> int:
        raise raised

    assert main() == code
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert error.count("\n") == 1


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(InputError, match=r'needs no_such_package .*: pip install "edge-sk\[deploy\]"'):
        require("no_such_package", extra="deploy", needed_for="export")
    assert require("json", extra="deploy", needed_for="export").loads("1") == 1


def test_the_digest_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "a").write_text("a")
    (folder / "b").write_text("b")
    digest = file_digest(folder)
    (folder / ".hidden").write_text("of the system")
    (folder / "part" / ".hidden").mkdir()
    (folder / "part" / ".hidden" / "visible").write_text("of the system")
    folder.rename(tmp_path / "two")
    assert file_digest(tmp_path / "two") == digest
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "part" / "b")
    assert file_digest(tmp_path / "two") != digest
    (tmp_path / "two" / "part" / "b").rename(tmp_path / "two" / "b")
    assert file_digest(tmp_path / "two") == digest
    (tmp_path / "two" / "b").write_text("c")
    assert file_digest(tmp_path / "two") != digest
    assert file_digest(tmp_path / "two" / "b") == hashlib.sha256(b"c").hexdigest()
