import pytest

from mixopt.identity import file_fingerprint, fingerprint


def test_order_of_keys_does_not_matter_but_order_of_items_does():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_fingerprints_are_sixteen_hex_digits_of_sha256():
    # sha256 of the canonical text {}: 44136fa355b3678a...
    assert fingerprint({}) == "44136fa355b3678a"


def test_not_a_number_has_no_identity():
    with pytest.raises(ValueError, match="JSON"):
        fingerprint(float("nan"))


def test_a_file_is_identified_by_its_bytes(tmp_path):
    for name, content in (("a", b"x" * 3_000_000), ("b", b"x" * 3_000_000), ("c", b"x" * 2_999_999 + b"y")):
        (tmp_path / name).write_bytes(content)
    assert file_fingerprint(tmp_path / "a") == file_fingerprint(tmp_path / "b") != file_fingerprint(tmp_path / "c")
