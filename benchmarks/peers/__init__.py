"""The same images through batchcap and other programs, in turn: who captions how fast, at which precision."""
