"""`python predict.py ...` is `clip-koa grade ...`, out of a checkout."""

import sys

from clip_koa.commands import main

if __name__ == "__main__":
    sys.exit(main(["grade", *sys.argv[1:]]))
