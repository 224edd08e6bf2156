"""`python -m clip_koa` is `clip-koa`."""

import sys

from clip_koa.commands import main

if __name__ == "__main__":
    sys.exit(main())
