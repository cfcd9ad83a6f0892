"""Models and worlds that several suites share."""
