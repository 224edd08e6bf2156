"""The vision tower and the text head as an ONNX graph, written node by node from the weights.

Written by hand and not traced, for the graph then has what grading needs and nothing else: both views from one input,
the last layer for the class token alone (all that the text head reads), and the fused operations of ONNX Runtime
(domain com.microsoft) in place of the dozens of small ones that a tracer leaves.
"""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from clip_koa.calibration.typicality import typicality_block
from modeling_clip_koa import CLIPKOAError, CLIPKOAForImageClassification
from modeling_clip_koa.modeling_clip_koa import MAX_LOGIT_SCALE

INPUT = "pixel_values"
OUTPUTS = ("probabilities", "logits", "flipped_logits")
# What `Typicality` takes: a block's mean patch token, of both views, (N, D).
FEATURES = "features"
# LayerNormalization came with opset 17.
_OPSETS = (("", 17), ("com.microsoft", 1))
_IR_VERSION = 9
# What CLIP configs call the activations that ONNX Runtime has an operation for.
ACTIVATIONS = ("gelu", "quick_gelu")


class ExportError(CLIPKOAError, ValueError):
    """A checkpoint that cannot be exported, or an export that does not grade as it does; the message says which."""


class GraphWriter:
    """Collects nodes and weights; each call that adds a node gives the name of its output."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def weight(self, name: str, values) -> str:
        """Keeps a tensor or array under its name."""
        if isinstance(values, torch.Tensor):
            values = values.detach().float().cpu().numpy()
        self.weights[name] = np.ascontiguousarray(values)
        return name

    def add(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes) -> str:
        """A node with one output, named after it."""
        return self.add_many(kind, inputs, [output], domain, **attributes)[0]

    def add_many(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes) -> list[str]:
        """A node with several outputs; an empty name is an output that nobody reads."""
        named = next(output for output in outputs if output)
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=named, domain=domain, **attributes))
        return outputs

    def product(self, inputs: str, name: str, linear: torch.nn.Linear) -> str:
        """The matrix product of a linear layer, without its bias."""
        return self.add("MatMul", [inputs, self.weight(f"{name}.weight", linear.weight.t())], name)


def build_graph(model: CLIPKOAForImageClassification) -> onnx.ModelProto:
    """The graph from `pixel_values` (N, 3, H, W) to what `OUTPUTS` and `FEATURES` name.

    `probabilities` (N, K) are those of the two views' averaged logits, `logits` of the X-ray, `flipped_logits` of its
    mirror image, `features` (N, D) are what typicality is measured by. Weights are fp32; N is free.

    Raises:
        ExportError: an activation that the graph has no operation for, a model without prompts, or of one block.
    """
    vision = model.config.vision_config
    if vision.hidden_act not in ACTIVATIONS:
        raise ExportError(f"vision_config.hidden_act is {vision.hidden_act!r}: {' and '.join(ACTIVATIONS)} can go.")
    if model.lacks_prompts():
        raise ExportError("The model has no prompts yet: call model.set_prompts(prompts, tokenizer).")
    if vision.num_hidden_layers < 2:
        raise ExportError("A vision tower of one block cannot go: the graph cuts its last block short.")
    writer = GraphWriter()
    hidden = _embed(writer, model)
    pooled = _encode(writer, model, hidden)
    _grade(writer, model, pooled)
    size, grades = vision.image_size, model.config.num_labels
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", vision.num_channels, size, size])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", grades]) for name in OUTPUTS]
    outputs.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", vision.hidden_size]))
    weights = [numpy_helper.from_array(values, name) for name, values in writer.weights.items()]
    graph = helper.make_graph(writer.nodes, "clip_koa", inputs, outputs, weights)
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="clip_koa")


def _embed(writer: GraphWriter, model) -> str:
    """Both views as tokens with their positions, (2N, T, D): the X-rays first, then their mirror images."""
    embeddings = model.vision_model.embeddings
    width = embeddings.patch_embedding.weight.shape[0]
    patch = embeddings.patch_size
    ends = {"starts": [-1], "ends": [np.iinfo(np.int64).min], "axes": [3], "steps": [-1]}
    ends = [writer.weight(f"mirror.{name}", np.array(value, np.int64)) for name, value in ends.items()]
    mirrored = writer.add("Slice", [INPUT, *ends], "mirrored")
    views = writer.add("Concat", [INPUT, mirrored], "views", axis=0)
    kernel = writer.weight("patch_embedding", embeddings.patch_embedding.weight)
    patches = writer.add("Conv", [views, kernel], "patches", strides=[patch, patch], kernel_shape=[patch, patch])
    shape = writer.weight("patches.shape", np.array([0, width, -1], np.int64))
    rows = writer.add(
        "Transpose", [writer.add("Reshape", [patches, shape], "patches.flat")], "patches.rows", perm=[0, 2, 1]
    )
    # The class token for each view: as many as there are views.
    views_shape = writer.add("Shape", [views], "views.shape", start=0, end=1)
    rest = writer.weight("class.rest", np.array([1, width], np.int64))
    class_shape = writer.add("Concat", [views_shape, rest], "class.shape", axis=0)
    token = writer.weight("class_embedding", embeddings.class_embedding.reshape(1, 1, -1))
    classes = writer.add("Expand", [token, class_shape], "classes")
    tokens = writer.add("Concat", [classes, rows], "tokens", axis=1)
    positions = writer.weight("positions", embeddings.position_embedding.weight[None])
    return _norm(writer, writer.add("Add", [tokens, positions], "embedded"), "pre_norm", _pre_norm(model))


def _pre_norm(model) -> torch.nn.LayerNorm:
    return model.vision_model.pre_layrnorm  # spelled so in CLIP


def _norm(writer: GraphWriter, inputs: str, name: str, norm: torch.nn.LayerNorm) -> str:
    parameters = [writer.weight(f"{name}.weight", norm.weight), writer.weight(f"{name}.bias", norm.bias)]
    return writer.add("LayerNormalization", [inputs, *parameters], name, axis=-1, epsilon=norm.eps)


def _add_and_norm(writer: GraphWriter, inputs: str, skip: str, bias: torch.Tensor, name: str, norm) -> tuple[str, str]:
    """Adds a block's output and its bias to what it was given, and normalises: the sum and the normalised sum.

    Not by ONNX Runtime's SkipLayerNormalization, which takes four times as long as the three operations together.
    """
    biased = writer.add("Add", [inputs, writer.weight(f"{name}.added", bias)], f"{name}.biased")
    total = writer.add("Add", [biased, skip], f"{name}.sum")
    return total, _norm(writer, total, name, norm)


def _encode(writer: GraphWriter, model, hidden: str) -> str:
    """The transformer; the post-normalised class token of each view, (2N, 1, D)."""
    tower = model.vision_model
    layers = tower.encoder.layers
    normed = _norm(writer, hidden, "layer0.norm1", layers[0].layer_norm1)
    for number, layer in enumerate(layers):
        name = f"layer{number}"
        last = number == len(layers) - 1
        queries = normed
        if last:  # nothing but the class token is read from here on
            zero = writer.weight("class.place", np.array([0], np.int64))
            queries = writer.add("Gather", [normed, zero], "class.normed", axis=1)
            hidden = writer.add("Gather", [hidden, zero], "class.hidden", axis=1)
        attended = _attend(writer, layer.self_attn, queries, normed, name)
        projected = writer.product(attended, f"{name}.out", layer.self_attn.out_proj)
        hidden, normed = _add_and_norm(
            writer, projected, hidden, layer.self_attn.out_proj.bias, f"{name}.norm2", layer.layer_norm2
        )
        mixed = _mix(writer, layer.mlp, normed, name, model.config.vision_config.hidden_act)
        following = tower.post_layernorm if last else layers[number + 1].layer_norm1
        after = "post_norm" if last else f"layer{number + 1}.norm1"
        hidden, normed = _add_and_norm(writer, mixed, hidden, layer.mlp.fc2.bias, after, following)
        if number == typicality_block(model):
            _add_features(writer, hidden)
    return normed


def _add_features(writer: GraphWriter, hidden: str) -> None:
    """The mean patch token, averaged over both views, (N, D), from a block's tokens (2N, T, D)."""
    cut = {"starts": [1], "ends": [np.iinfo(np.int64).max], "axes": [1]}
    cut = [writer.weight(f"patches.{name}", np.array(value, np.int64)) for name, value in cut.items()]
    means = writer.add(
        "ReduceMean", [writer.add("Slice", [hidden, *cut], "patches.tokens")], "patches.mean", axes=[1], keepdims=0
    )
    views = writer.add_many("Split", [means], ["features.image", "features.mirror"], axis=0)
    total = writer.add("Add", views, "features.total")
    writer.add("Mul", [total, writer.weight("features.half", np.array(0.5, np.float32))], FEATURES)


def _attend(writer: GraphWriter, attention, queries: str, keys: str, name: str) -> str:
    """Self-attention before its output projection, (2N, queries, D)."""
    sources = {"q": (queries, attention.q_proj), "k": (keys, attention.k_proj), "v": (keys, attention.v_proj)}
    parts = [writer.product(source, f"{name}.{part}", linear) for part, (source, linear) in sources.items()]
    biases = torch.cat([linear.bias for _, linear in sources.values()])
    inputs = [*parts, writer.weight(f"{name}.qkv.bias", biases)]
    return writer.add(
        "MultiHeadAttention", inputs, f"{name}.attended", "com.microsoft",
        num_heads=attention.num_heads, scale=float(attention.scale),
    )  # fmt: skip


def _mix(writer: GraphWriter, mlp, inputs: str, name: str, activation: str) -> str:
    """The two-layer perceptron without its last bias."""
    wide = writer.product(inputs, f"{name}.fc1", mlp.fc1)
    bias = writer.weight(f"{name}.fc1.bias", mlp.fc1.bias)
    if activation == "gelu":
        active = writer.add("BiasGelu", [wide, bias], f"{name}.active", "com.microsoft")
    else:
        biased = writer.add("Add", [wide, bias], f"{name}.biased")
        active = writer.add("QuickGelu", [biased], f"{name}.active", "com.microsoft", alpha=1.702)
    return writer.product(active, f"{name}.fc2", mlp.fc2)


def _grade(writer: GraphWriter, model, pooled: str) -> None:
    """Cosines with the grade embeddings, scaled: the outputs of the graph from the class tokens (2N, 1, D)."""
    embeds = writer.product(pooled, "image_embeds.long", model.visual_projection)
    flat = writer.weight("embeds.shape", np.array([-1, model.config.projection_dim], np.int64))
    embeds = writer.add("Reshape", [embeds, flat], "image_embeds.rows")
    embeds = writer.add("LpNormalization", [embeds], "image_embeds", axis=-1, p=2)
    with torch.no_grad():
        grades = model.kept_grade_embeds().float() * model.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()
    both = writer.add("MatMul", [embeds, writer.weight("grade_embeds", grades.t())], "both_logits")
    writer.add_many("Split", [both], list(OUTPUTS[1:]), axis=0)
    total = writer.add("Add", list(OUTPUTS[1:]), "logits.total")
    half = writer.weight("half", np.array(0.5, np.float32))
    averaged = writer.add("Mul", [total, half], "logits.averaged")
    writer.add("Softmax", [averaged], OUTPUTS[0], axis=-1)
