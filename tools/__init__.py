"""tools: scripts that also install with the package; see the first line of each."""
