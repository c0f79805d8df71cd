"""What the site needs beyond the pages: an index of the decisions, links that leave docs/.

MkDocs calls these functions (`hooks` in mkdocs.yml). The pages themselves stay plain
Markdown whose links also work in a repository browser, where the site's links would not.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_TITLE = re.compile(r"^# (.+)$", flags=re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Spell out the folder of decisions, so that a new one needs no line in mkdocs.yml."""
    for entry in config.nav or []:
        for title, target in entry.items():
            if isinstance(target, str) and target.endswith("/"):
                folder = target.rstrip("/")
                pages = sorted(path.name for path in _folder(config, folder).glob("[0-9]*.md"))
                entry[title] = [f"{folder}/index.md", *(f"{folder}/{name}" for name in pages)]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the list of decisions, which the repository shows as a folder."""
    pages = sorted(_folder(config, "decisions").glob("[0-9]*.md"))
    lines = [f"- [{_title(path.read_text(encoding='utf-8'))}]({path.name})" for path in pages]
    text = "\n".join(["# Decisions", "", "Why things are as they are, one page each.", "", *lines, ""])
    files.append(File.generated(config, "decisions/index.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Point links to a folder at its index, and name files outside docs/ instead of linking to them."""
    folder = posixpath.dirname(page.file.src_uri)

    def site_link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        place = posixpath.normpath(posixpath.join(folder, target.partition("#")[0]))
        if place.startswith("../"):
            return f"{text} (`{place.removeprefix('../')}` in the repository)"
        return f"[{text}]({target}index.md)" if target.endswith("/") else match[0]

    return _LINK.sub(site_link, markdown)


def _folder(config: MkDocsConfig, name: str) -> Path:
    return Path(config.docs_dir) / name


def _title(text: str) -> str:
    found = _TITLE.search(text)
    assert found, "a page begins with its title"
    return found[1]
