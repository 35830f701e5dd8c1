"""Files at addresses: the one part, beside `export.hub`, that asks the network, and only with `--allow-remote`."""
