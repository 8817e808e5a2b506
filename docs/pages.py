"""Hook of mkdocs: the site has the repository's own tree, so that links between its files hold in both.

A notebook is a page, too, with the outputs that it was saved with.
"""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "recipes", "deploy")
KINDS = {".md", ".css", ".ipynb", ".png", ".svg", ".json", ".yaml", ".py", ".kt", ".swift"}


@event_priority(100)  # before the plugins look for pages
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the pages at the root, and in three folders the pages with what they link to."""
    beside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in KINDS)
    names = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *beside)]
    found = [file for file in files if file.src_dir != config.docs_dir]
    found += [File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in sorted(names)]
    for name in names:
        if name.endswith(".ipynb"):
            found.append(File.generated(config, f"{name[:-6]}.md", content=_as_markdown(ROOT / name)))
    return Files(found)


def _as_markdown(notebook: Path) -> str:
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}```")
            elif picture := output.get("data", {}).get("image/png"):
                parts.append(f"![](data:image/png;base64,{''.join(picture).strip()})")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Link to a notebook's page, not to its JSON."""
    return markdown.replace(".ipynb)", ".md)")


def on_page_content(html: str, **_: Any) -> str:
    """Show what Sphinx's roles in docstrings name as code, without the role."""
    return re.sub(r":(?:func|class|meth|attr|mod|math):<code>~?([^<]*)</code>", r"<code>\1</code>", html)
