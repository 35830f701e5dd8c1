"""Where the stages run: `local` is worker processes on this machine."""
