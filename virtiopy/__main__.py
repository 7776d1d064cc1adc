"""`python -m virtiopy` is the command virtiopy."""

from virtiopy.cli.main import main

if __name__ == "__main__":
    main()
