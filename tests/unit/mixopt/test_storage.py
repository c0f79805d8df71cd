import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mixopt import ResourceError, StudyError
from mixopt.storage import RunDirectory, atomic_path, explained_errors, free_bytes, read_json, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_is_whole_and_alone(tmp_path):
    write_text(tmp_path / "deep" / "file.txt", "naïve ☃")
    assert (tmp_path / "deep" / "file.txt").read_text(encoding="utf-8") == "naïve ☃"
    assert names(tmp_path / "deep") == ["file.txt"]


def test_the_temporary_path_keeps_the_suffix_for_writers_that_look_at_it(tmp_path):
    with atomic_path(tmp_path / "array.npy") as temporary:
        np.save(temporary, np.arange(3))
    assert np.load(tmp_path / "array.npy").tolist() == [0, 1, 2]
    assert names(tmp_path) == ["array.npy"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, FileNotFoundError])
def test_an_exception_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    write_text(tmp_path / "file.txt", "old")
    with pytest.raises(error), atomic_path(tmp_path / "file.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert (tmp_path / "file.txt").read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_one_clear_error_with_a_remedy(tmp_path):
    write_text(tmp_path / "file.txt", "old")
    with (
        pytest.raises(
            ResourceError, match=r"no disk space left to write .*file\.txt \(\d+ MB free\); free some and run"
        ),
        atomic_path(tmp_path / "file.txt"),
    ):
        Path("/dev/full").write_text("what the disk refuses")
    assert (tmp_path / "file.txt").read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_clear_error(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ResourceError, match=r"cannot write .*; choose another place with --dir"):
        write_text(tmp_path / "locked" / "file.txt", "x")


def test_a_permission_error_is_translated(tmp_path):
    with pytest.raises(ResourceError, match="choose another place with --dir"), explained_errors(tmp_path):
        raise PermissionError(13, "Permission denied")


def test_other_errors_of_the_system_are_not_hidden(tmp_path):
    with pytest.raises(IsADirectoryError), explained_errors(tmp_path):
        raise IsADirectoryError(21, "Is a directory")


def test_json_is_read_as_it_was_written(tmp_path):
    value = {"b": [1, 0.1 + 0.2, None, "☃"], "a": {"nested": True}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


def test_a_missing_file_is_none_without_a_warning(tmp_path, caplog):
    assert read_json(tmp_path / "none.json") is None
    assert not caplog.records


DAMAGES = {
    "empty": b"",
    "torn": b'{"checksum": "0123", "val',
    "no object": b"[1, 2]",
    "no checksum": b'{"value": 1}',
    "wrong checksum": json.dumps({"checksum": "0" * 16, "value": 1}).encode(),
    "no text": b"\xff\xfe\x00",
    "not a number": b'{"checksum": "0", "value": NaN}',
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_counts_as_absent_with_a_warning(tmp_path, caplog, content):
    (tmp_path / "value.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert read_json(tmp_path / "value.json") is None
    assert "file damaged" in caplog.text


def test_a_changed_digit_is_found(tmp_path):
    write_json(tmp_path / "value.json", {"loss": 3.25})
    text = (tmp_path / "value.json").read_text()
    (tmp_path / "value.json").write_text(text.replace("3.25", "3.26"))
    assert read_json(tmp_path / "value.json") is None


def test_values_that_are_no_json_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "value.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def test_free_space_is_known_for_places_that_do_not_exist_yet(tmp_path):
    assert free_bytes(tmp_path / "not" / "yet") > 0


def test_everything_of_a_study_lies_inside_its_run_directory(tmp_path):
    files = RunDirectory(tmp_path)
    places = [
        files.ledger,
        files.config,
        files.tokens,
        files.mixture,
        files.report,
        files.expert("a"),
        files.score("k"),
    ]
    places += [files.trial("t"), files.job("f"), files.result("f")]
    assert all(place.is_relative_to(tmp_path) for place in places)
    assert len(set(places)) == len(places)


SECOND_DRIVER = """
import sys
from pathlib import Path
from mixopt import StudyError
from mixopt.storage import RunDirectory
try:
    with RunDirectory(Path(sys.argv[1])).locked():
        print("locked")
except StudyError as error:
    print(error)
"""


def second_driver(folder):
    command = [sys.executable, "-c", SECOND_DRIVER, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_second_driver_is_refused_while_the_first_one_runs(tmp_path):
    with RunDirectory(tmp_path / "run").locked():
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        assert second_driver(tmp_path / "run").startswith(f"another mixopt ({holder}) is running the study in")
    assert second_driver(tmp_path / "run") == "locked"


def test_a_driver_that_fails_releases_the_study(tmp_path):
    with pytest.raises(RuntimeError, match="driver died"), RunDirectory(tmp_path).locked():
        raise RuntimeError("driver died")
    with RunDirectory(tmp_path).locked():
        pass


def test_a_run_directory_that_is_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "taken").write_text("a file of the user")
    with pytest.raises((ResourceError, StudyError), match="taken"), RunDirectory(tmp_path / "taken").locked():
        pass
