"""Templates, style sheets and scripts of the report."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def environment() -> Environment:
    """The templates: a name that is not given is an error, and all text is escaped."""
    return Environment(
        loader=PackageLoader("reports.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def assets(*names: str) -> Markup:
    """Style sheets or scripts of this package, joined, to be put into a page."""
    folder = files("reports.page.templates")
    return Markup("\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names))
