"""`python -m virtiopy` is the command virtiopy."""

from virtiopy.cli.start import main

if __name__ == "__main__":
    main()
