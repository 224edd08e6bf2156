"""`python push_to_hub.py ...` is `clip-koa publish ...`."""

import sys

from clip_koa.commands import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))
