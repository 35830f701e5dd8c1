"""The programs that made the demo model, measure it and drew the sample images; no part of the package."""
