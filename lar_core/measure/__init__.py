"""Measure: from a policy to numbers."""
