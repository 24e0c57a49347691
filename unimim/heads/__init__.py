"""MIM heads H."""
