"""Hook of mkdocs: the site has the repository's own tree, so that links between its files hold in both."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "recipes", "deploy")
KINDS = {".md", ".ipynb", ".png", ".svg", ".json", ".yaml", ".py", ".kt", ".swift"}


@event_priority(100)  # before the plugins look for pages
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the pages at the root, and in three folders the pages with what they link to."""
    beside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in KINDS)
    names = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *beside)]
    theirs = [file for file in files if file.src_dir != config.docs_dir]
    return Files(
        [*theirs, *(File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in sorted(names))]
    )


def on_page_content(html: str, **_: Any) -> str:
    """Show what Sphinx's roles in docstrings name as code, without the role."""
    return re.sub(r":(?:func|class|meth|attr|mod|math):<code>~?([^<]*)</code>", r"<code>\1</code>", html)
