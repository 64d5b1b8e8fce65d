"""Where `vortex` begins. It loads nothing before Ctrl-C is waited for: the commands take a moment to load."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and ends the process with its status (`vortexlab.cli.main`)."""
    try:
        from vortexlab.cli.main import main as run

        run()
    except KeyboardInterrupt:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more has nothing left to end
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
