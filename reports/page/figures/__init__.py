"""The figures of the report: rows of the measures in, SVG elements out.

Text and axes take the page's text colour and the background is clear, so that one figure suits
light and dark pages. The same rows give the same bytes.
"""

from __future__ import annotations
