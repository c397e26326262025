"""The command ``python -m benchmarks NAME ...``."""

import importlib
import sys
from pathlib import Path

from benchmarks.extras import MissingExtra


def main(arguments: list[str]) -> int:
    """Hand over to the benchmark's own command line and return its exit status."""
    here = Path(__file__).parent
    names = sorted(path.parent.name for path in here.glob("*/cli.py"))
    usage = f"python -m benchmarks {'|'.join(names)} ..."
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: {usage}")
        return 0
    if not arguments or arguments[0] not in names:
        asked = f"unknown benchmark {arguments[0]!r}, " if arguments else ""
        print(f"error: {asked}expected {usage}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"benchmarks.{arguments[0]}.cli").main(arguments[1:])
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
