# SPDX-License-Identifier: Apache-2.0
"""What `make site` adds to mkdocs: the README as first page, links into the repository, Markdown twins, `llms.txt`."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File


LINK = re.compile(r"(?<=\]\()(?!https?://|#|mailto:)([^)#\s]+)(#[^)]*)?(?=\))")
#: Page address -> its Markdown as it is shown, in the order of the navigation.
TWINS: dict[str, str] = {}


def resolved(markdown: str, folder: str, root: Path, forge: str) -> str:
    """Links from a page of a folder of the repository as the site needs them: pages stay pages of the site, and what
    lies elsewhere in the repository is an address of the forge."""

    def replace(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        anchor = match[2] or ""
        if path == "README.md":
            return "index.md" + anchor
        inside = path.startswith("docs/") and not path.startswith(("docs/results", "docs/site"))
        if inside and not path.endswith(".py"):
            return path.removeprefix("docs/") + anchor
        if not (root / path).exists():
            return match[0]  # a warning of the builder, and so an error
        return f"{forge}/{'tree' if (root / path).is_dir() else 'blob'}/main/{path}{anchor}"

    return LINK.sub(replace, markdown)


def on_files(files, config):
    root = Path(config.config_file_path).parent
    text = (root / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=resolved(text, "", root, config.repo_url)))
    return files


def on_page_markdown(markdown, page, config, files):
    root = Path(config.config_file_path).parent
    if not page.file.src_uri.startswith(("site/", "index.md")):
        markdown = resolved(markdown, "docs", root, config.repo_url)
    TWINS[page.file.dest_uri] = markdown
    return markdown


def on_post_build(config):
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", "", "## Pages", ""]
    for address, markdown in sorted(TWINS.items()):
        twin = Path(config.site_dir) / address
        twin = twin.with_suffix(".md") if twin.name != "index.html" else twin.parent / "index.md"
        twin.write_text(markdown, encoding="utf-8")
        title = next((line[2:] for line in markdown.splitlines() if line.startswith("# ")), address)
        lines.append(f"- [{title}]({config.site_url}{twin.relative_to(config.site_dir).as_posix()})")
    (Path(config.site_dir) / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
