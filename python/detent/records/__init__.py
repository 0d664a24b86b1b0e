"""Frozen values that travel between rooms; each saves, loads and prints."""

from __future__ import annotations
