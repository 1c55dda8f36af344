"""What the site needs beside its pages: links that lead there, examples as such."""

import re
import textwrap
from pathlib import Path

import griffe

__all__ = ["Examples", "on_page_markdown"]

ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown, page, config, files):
    """Returns the text of a page; links to other files of the repository lead there."""
    there = f"{config['repo_url']}/blob/main/"
    if page.file.src_uri != "index.md":
        return markdown.replace("](../", f"]({there}")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r'(\]\(|src=")docs/', r"\1", text)
    here = set(files.src_uris)

    def moved(found):
        path = found[1].partition("#")[0]
        return found[0] if path in here or ":" in path else f"]({there}{found[1]})"

    return re.sub(r"\]\(([^)#\s][^)\s]*)\)", moved, text)


class Examples(griffe.Extension):
    """Gives the examples of a docstring, which need no heading for doctest, theirs."""

    def on_object(self, *, obj, **_):
        text, mark, examples = (obj.docstring.value if obj.docstring else "").partition(
            "\n>>> "
        )
        if mark:
            examples = textwrap.indent(f">>> {examples}", "    ")
            obj.docstring.value = f"{text}\nExamples:\n{examples}"
