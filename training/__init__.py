"""The programs that made the demo model, measure it and drew the sample pictures; no part of the package."""
