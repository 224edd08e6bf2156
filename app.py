"""The page, as a Space starts it: `clip-koa page`."""

import sys

from clip_koa.commands import main

if __name__ == "__main__":
    sys.exit(main(["page", *sys.argv[1:]]))
