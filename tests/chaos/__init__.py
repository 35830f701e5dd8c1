"""Jobs that something happens to: the harness, its faults, and a short form of it as tests."""
