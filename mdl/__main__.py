"""`python -m mdl` and the `mdl` script."""

import sys


def main() -> None:
    """Run the command line. What a shell asks for completion is answered without starting the rest."""
    if sys.argv[1:2] == ["__complete"]:
        from mdl.cli.complete import complete

        sys.exit(complete(sys.argv[2:]))
    from mdl.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
