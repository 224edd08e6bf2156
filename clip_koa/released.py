"""The released model, where it lies beside the code."""

import clip_koa


def released_model() -> str:
    """The model that is meant where none is named.

    Raises:
        CLIPKOAError: it does not lie beside the code.
    """
    if not clip_koa.RELEASED_MODEL.is_dir():
        from dataset_script.pixels import CLIPKOAError  # it imports NumPy and Pillow

        raise CLIPKOAError("no released model lies beside the code: name one by --model, a model folder or a Hub id.")
    return str(clip_koa.RELEASED_MODEL)
