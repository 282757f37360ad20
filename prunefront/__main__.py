"""`python -m prunefront`, the same as the command `prunefront`."""

from prunefront.pipelines.cli.main import main

if __name__ == "__main__":
    main()
