"""A hook of mkdocs: links to files of the repository, which the site does not have, become text."""

import re

OUTSIDE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+(?:rdbcl_jax|configs|launch|notebooks|tests)\b[^)]*\)"
)


def on_page_markdown(markdown, **unused):
    return OUTSIDE.sub(r"\1", markdown)
