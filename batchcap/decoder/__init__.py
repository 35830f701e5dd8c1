"""Features → captions: key-value slots, continuous batching, sampling, what the text looks like."""
