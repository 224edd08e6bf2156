"""`accelerate launch train.py ...` is `clip-koa train ...`, on several devices."""

import sys

from clip_koa.commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
