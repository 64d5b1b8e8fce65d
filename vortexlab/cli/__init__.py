"""The command line: `vortex`."""
