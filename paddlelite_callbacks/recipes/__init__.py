"""Whole ways through the package in one call: `lighten`."""
