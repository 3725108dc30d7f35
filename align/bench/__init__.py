"""This project against stock TRL on this machine: `python -m align.bench` (docs/performance.md)."""
