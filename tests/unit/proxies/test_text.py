"""Text sources: long txt files in pieces that add up to them, files looked up once."""

import pytest

from mixopt.proxies.text import TextSource, pieces

LINES = "".join(f"line {i} of a text that is longer than one piece\n" for i in range(500))
PROSE = "A sentence without any end of line. " * 1000


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        PROSE,
        "x" * 50_000,
        "\n" * 9_000,
        f"{'ab ' * 3000}\n{LINES}{'文字' * 5000}\n\n{PROSE}",
        "short",
        "x" * 4000,
        "",
    ],
    ids=["lines", "one line", "no spaces", "empty lines", "all of it", "short", "just one piece", "nothing"],
)
def test_pieces_add_up_to_the_text_and_none_has_8000_characters(text):
    parts = list(pieces(text))
    assert "".join(parts) == text
    assert all(0 < len(part) < 8000 for part in parts)
    assert all(len(part) >= 2000 for part in parts[:-1])


def test_whole_lines_are_kept_together():
    parts = list(pieces(LINES))
    assert len(parts) > 1
    assert all(part.endswith("\n") and 4000 <= len(part) < 4000 + 60 for part in parts[:-1])


def test_a_long_line_is_parted_after_spaces():
    parts = list(pieces(PROSE))
    assert len(parts) > 1
    assert all(part.endswith(" ") for part in parts[:-1])


def test_only_txt_files_are_cut(tmp_path):
    (tmp_path / "a.txt").write_text(PROSE)
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{PROSE}"}}\n')
    cut = list(TextSource("domains.a", str(tmp_path / "a.txt")).documents())
    assert "".join(cut) == PROSE
    assert len(cut) > 1
    assert list(TextSource("domains.a", str(tmp_path / "a.jsonl")).documents()) == [PROSE]


class CountingSource(TextSource):
    """Counts how often its files are looked up."""

    lookups = 0

    def files(self):
        type(self).lookups += 1
        return super().files()


def test_files_are_not_looked_up_again_for_every_document(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"document {i}")
    assert len(list(CountingSource("domains.a", str(tmp_path)).documents())) == 30
    assert CountingSource.lookups <= 2


def test_a_text_of_blanks_is_no_document(tmp_path):
    (tmp_path / "a.txt").write_text("words\n" + "\n" * 9000 + "more words\n")
    documents = list(TextSource("domains.a", str(tmp_path / "a.txt")).documents())
    assert all(document.strip() for document in documents)
    assert [document.split() for document in documents] == [["words"], ["more", "words"]]
