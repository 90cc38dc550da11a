"""``python -m trionfq.cli``: as the script ``trionfq``."""

from trionfq.cli import main

if __name__ == "__main__":
    main()
