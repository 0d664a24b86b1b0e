"""`python -m detent.cli`."""

from __future__ import annotations

from detent.cli import main

main()
