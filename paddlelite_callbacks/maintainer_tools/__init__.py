"""Tools of the maintainers: not in the wheel."""
