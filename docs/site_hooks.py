"""Hooks of mkdocs: the pages that no file holds, and the repository's links as the site's."""

from __future__ import annotations

import re
from typing import Any, cast

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_api import GROUPS, api_pages
from site_backends import TITLES, backend_pages
from site_commands import command_page
from site_pages import ROOT, WHOLE, for_site, linked_files, readme_pages, source_page

import nirdeploy as nd
from nirdeploy import errors

PUBLIC = frozenset(nd.__all__)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Navigation of the generated reference; a guide that mkdocs.yml does not place stands at the end of Guides."""
    nav: list[dict[str, Any]] = cast("list[dict[str, Any]]", config.nav)
    sections = {title: value for item in nav for title, value in item.items()}
    named = str(nav)
    sections["Guides"] += [p.name for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in named]
    python = [{title: f"api/{page}.md"} for page, (title, *_) in GROUPS.items()]
    sections["Reference"] += [
        {"Python": [*python, {"Types": "api/types.md"}]},
        {"Options of backends": [{title: f"api/{page}.md"} for page, title in TITLES.items()]},
        {"Command line": "cli.md"},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made here, and one for every file of the repository that a page links to."""
    pages, wanted = {}, set()
    for page, text in readme_pages().items():
        pages[page] = for_site(text, "README.md", page, PUBLIC)
        wanted |= linked_files(text, "README.md")
    for page, origin in WHOLE.items():
        text = (ROOT / origin).read_text(encoding="utf-8")
        pages[page] = for_site(text, origin, page, PUBLIC)
        wanted |= linked_files(text, origin)
    for path in sorted((ROOT / "docs").glob("*.md")):
        wanted |= linked_files(path.read_text(encoding="utf-8"), f"docs/{path.name}")
    known = {"README.md", *WHOLE.values()}
    pages |= {f"source/{path}.md": source_page(path) for path in wanted - known if not path.startswith("docs/")}
    pages |= api_pages() | backend_pages() | {"cli.md": command_page()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A guide's links as the site's."""
    if page.file.generated_by is not None:
        return markdown
    return for_site(markdown, f"docs/{page.file.src_uri}", page.file.src_uri, PUBLIC)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Names in the reference as links where no import tells what they are.

    Few modules import all the errors that they pass on, and several errors in one row come as a tuple.
    """
    html = re.sub(r"<code>\(((?:<autoref[^>]*>)?\w+Error\b.*?)\)</code>", r"<code>\1</code>", html)
    html = re.sub(r"(?<=<code>)(\w+)(?=</code>\s*</td>)", _error, html)
    return re.sub(r"(?<=[\w.,:;(] )<code>(\w+)</code>", _public, html) if page.url.startswith("api/") else html


def _error(match: re.Match[str]) -> str:
    name = match[1]
    return f'<autoref identifier="nirdeploy.errors.{name}">{name}</autoref>' if name in errors.__all__ else name


def _public(match: re.Match[str]) -> str:
    """A public name in a sentence; words such as `run` or `check` may be a parameter's."""
    name = match[1]
    if name not in PUBLIC or (name.islower() and "_" not in name):
        return match[0]
    return f'<autoref identifier="nirdeploy.{name}"><code>{name}</code></autoref>'
