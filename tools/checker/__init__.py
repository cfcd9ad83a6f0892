"""Tool fsck: checks a store without changing a byte of it. See tools/fsck.py."""
