"""Looks into an ONNX graph of a release: operators, weights, names of parts, and nothing beside them."""

from collections.abc import Iterator

from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.forms import find_form

_NOTES = ("metadata_props", "doc_string", "training_info")


def check_graph(name: str, content: bytes) -> None:
    """Refuses a graph that is damaged, or carries more than what computes.

    Args:
        name: of the file, for messages.

    Raises:
        ImportError: ONNX is not installed.
        ReleaseError: damage, notes of the exporter, weights in another file, bytes that no reader shows, or a name
            that a release may not hold.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} cannot be checked without ONNX: pip install 'clip-koa[onnx]'.") from error
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ReleaseError(f"{name} is no whole ONNX graph: {' '.join(str(error).split())[:200]}.") from error
    strings = []
    for message, field, value in _walk(model):
        if field in _NOTES:
            raise ReleaseError(f"{name} carries notes on how it was made ({field}): export it anew.")
        if isinstance(message, onnx.TensorProto) and field == "external_data":
            raise ReleaseError(f"{name} keeps weights in another file ({field}): export it whole.")
        if isinstance(value, str):
            strings.append(value)
    if found := find_form("\n\0\n".join(strings)):
        raise ReleaseError(f"{name} holds {found}.")
    model.DiscardUnknownFields()
    if model.ByteSize() != len(content):
        raise ReleaseError(f"{name} holds bytes that are no part of its graph: export it anew.")


def _walk(message) -> Iterator[tuple]:
    """Each field that a message and the messages in it set: the message, the field's name, and a value of it."""
    for descriptor, held in message.ListFields():
        repeated = not isinstance(held, (str, bytes, int, float)) and not hasattr(held, "ListFields")
        for value in held if repeated else [held]:
            if hasattr(value, "ListFields"):
                yield message, descriptor.name, None
                yield from _walk(value)
            elif isinstance(value, str):
                yield message, descriptor.name, value
            elif isinstance(value, bytes) and descriptor.name != "raw_data":
                yield message, descriptor.name, value.decode("utf-8", "backslashreplace")
            else:
                break  # numbers
