"""`python -m flowft` is `flowft`."""

from flowft.cli.main import main

if __name__ == "__main__":
    main()
