"""Tool: any structure of a store as text, without changing a byte of it: `python -m tools.dump --help`."""
