"""Bad input of every kind, generated, and what becomes of it: `python -m faults.harness --help` in tests/."""
