"""Tool breakit: makes one precise damage in a store, so that one can see whether it is found. See
tools/breakit.py."""
