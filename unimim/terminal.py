"""What may reach a terminal: text that others wrote, made harmless."""

from __future__ import annotations

import unicodedata


def clean(text: object) -> str:
    """Text without characters that act on a terminal instead of being read: controls, direction marks, lone surrogates."""
    kept = (c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd" for c in str(text))
    return "".join(kept)
