"""``python -m desim_fl`` is the command line."""

from desim_fl.cli import main

if __name__ == "__main__":
    main()
