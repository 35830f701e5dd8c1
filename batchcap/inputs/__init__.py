"""What is to be captioned: sources found, rows in a stable order, cut into shards."""
