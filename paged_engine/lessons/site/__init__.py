"""The series as a site of static pages: `python -m paged_engine.lessons.site --to DIR`."""

from __future__ import annotations

from paged_engine.lessons.site.export import Report, export_site

__all__ = ["Report", "export_site"]
