"""Columns of files: cells, kinds of files, and what a damaged one is called."""

import math

import numpy as np
import pandas as pd
import pytest

from mixopt import ConfigError
from mixopt.sheet import Sheet, read_sheet, write_sheet


def test_missing_cells_are_nan_however_they_are_written():
    cells = ["", " ", "NaN", "NA", "n/a", "null", "None", None, float("nan")]
    assert all(math.isnan(value) for value in Sheet({"x": cells}).numbers("x"))
    assert set(Sheet({"x": cells}).integers("x")) == {None}


def test_numbers_are_taken_from_text_and_from_numbers():
    assert Sheet({"x": ["1.5", " 2e-3 ", 3, 4.0]}).numbers("x").tolist() == [1.5, 0.002, 3.0, 4.0]


def test_integers_of_64_bits_are_exact():
    big = 2**63 - 1
    assert Sheet({"x": [str(big), big, "3.0", 3.0, "-4"]}).integers("x") == (big, big, 3, 3, -4)


@pytest.mark.parametrize("cell", ["1,5", "abc", "1 2"])
def test_a_cell_that_is_no_number_is_named(cell):
    with pytest.raises(ConfigError, match=rf"column 'x' must hold numbers, got '{cell}' in row 2; correct"):
        Sheet({"x": ["1", cell]}).numbers("x")


def test_a_spreadsheets_file_with_marks_and_blank_lines_is_read(tmp_path):
    path = tmp_path / "a.CSV"
    path.write_bytes(b'\xef\xbb\xbf run , x\r\na,1\r\n\r\n"b,c",2\r\n\r\n')
    sheet = read_sheet(path)
    assert sheet.texts("run") == ("a", "b,c")
    assert sheet.numbers("x").tolist() == [1.0, 2.0]


def test_a_column_without_name_gets_the_name_that_pandas_gives(tmp_path):
    frame = pd.DataFrame({"x": [1.0, 2.0]})
    frame.to_csv(tmp_path / "a.csv")
    assert list(read_sheet(tmp_path / "a.csv").columns) == ["Unnamed: 0", "x"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"run,x\n", "at least one row"),
        ("a.csv", b"run,x\na\n", "2 cells of the header, not so in row 1"),
        ("a.csv", b"run,run\na,b\n", "twice is run"),
        ("a.csv", b'run,x\na,"b\n', "cannot be read"),
        ("a.csv", b"run,x\n\xff\xfe,1\n", "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.xlsx", b"anything", r"ends in \.csv or \.parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as error:
        read_sheet(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_missing_or_a_folder_is_said_to_be(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="there is a folder"):
        read_sheet(tmp_path / "folder.csv")
    with pytest.raises(ConfigError, match="there is none"):
        read_sheet(tmp_path / "missing.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, name):
    path = tmp_path / name
    write_sheet(path, {"x": np.ones(2)})
    before = path.read_bytes()
    with pytest.raises(ValueError):  # noqa: PT011 - foreign libraries word it
        write_sheet(path, {"x": np.ones(2), "y": np.ones(3)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
