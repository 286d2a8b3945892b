"""Maintainer tools; not part of the wheel."""
