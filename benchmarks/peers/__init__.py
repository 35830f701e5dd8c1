"""The same pictures through batchcap and other programs, in turn: who captions how fast, at which precision."""
