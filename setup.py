"""What setup.cfg cannot say: the README as PyPI shows it, where links into this repository would lead nowhere."""

import re
from pathlib import Path

from setuptools import setup

REPOSITORY = ""
"""Address that relative links continue, ending in "/blob/main/"; as long as it is empty, their text stands alone."""


def readme_for_pypi(text: str, repository: str = REPOSITORY) -> str:
    """The README with links that hold anywhere: absolute ones, or none. Pictures without an address are left out."""
    # Whether it is a picture, its text, its path
    link = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]*)\)")
    if repository:
        raw = repository.replace("/blob/", "/raw/")
        return link.sub(lambda m: f"{m[1]}[{m[2]}]({raw if m[1] else repository}{m[3]})", text)
    return link.sub(lambda m: "" if m[1] else m[2], text)


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=readme_for_pypi(readme), long_description_content_type="text/markdown")
