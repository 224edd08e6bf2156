"""`accelerate launch predict.py ...` is `clip-koa grade ...`, by several processes."""

import sys

from clip_koa.commands import main

if __name__ == "__main__":
    sys.exit(main(["grade", *sys.argv[1:]]))
