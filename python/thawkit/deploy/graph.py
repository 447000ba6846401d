"""One ONNX graph from camera pixels to logits, through torch's exporter."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.frozen import unfreeze

if TYPE_CHECKING:
    from thawkit.data import Preprocess

OPSET = 18
"""The first with an antialiased Resize, and the one torch's exporter writes without a conversion after."""

MAX_BYTES = 2**31 - 1
"""What a protobuf message, and so a model without external data, can hold."""


class Pipeline(nn.Module):
    """Preprocessing and network as one module, from uint8 (N, H, W, 3) to logits and probabilities."""

    def __init__(self, preprocess: Preprocess, network: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits, probabilities) of images as a camera or Pillow gives them."""
        pixels = self.preprocess(image.permute(0, 3, 1, 2))
        # The tracer cannot see that the crop always is size x size; networks that look at shapes must.
        side = self.preprocess.size
        logits = self.network(pixels.reshape(image.shape[0], 3, side, side))
        return logits, logits.softmax(1)


def pipeline(module: nn.Module, preprocess: Preprocess) -> Pipeline:
    """Copy both modules to the CPU, in float32 and evaluation mode; the caller's are left alone."""
    return Pipeline(copy.deepcopy(preprocess), copy.deepcopy(module)).to("cpu", torch.float32).eval()


def build(source: Pipeline, name: str) -> tuple[onnx.ModelProto, list[str]]:
    """Export a pipeline with dynamic N, H and W.

    Modules that :func:`thawkit.freeze` rewrote are replaced by the original ones in a copy.

    Returns:
        The model (input ``image``, outputs ``logits`` and ``probabilities``) and the exporter's warnings that
        are not about itself, as one-line notes.

    Raises:
        ThawkitError: torch cannot export the network, or it is too large for one file.
    """
    size = sum(t.nbytes for t in (*source.parameters(), *source.buffers()))
    if size > MAX_BYTES:
        raise ThawkitError(
            f"module: {size / 1e9:.1f} GB of weights, one ONNX file holds {MAX_BYTES / 1e9:.1f} GB"
        )
    stock = copy.deepcopy(source)
    unfreeze(stock.network)
    dynamic = torch.export.Dim.DYNAMIC
    side = stock.preprocess.size
    # Neither square, nor 0 or 1, nor the network's own size: sizes that the tracer might take for constants.
    example = torch.zeros(2, side + 37, side + 58, 3, dtype=torch.uint8)
    with _quiet() as notes, torch.no_grad():
        try:
            program = torch.onnx.export(
                stock,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=["image"],
                output_names=["logits", "probabilities"],
                dynamic_shapes={"image": {0: dynamic, 1: dynamic, 2: dynamic}},
                verbose=False,
            )
        except Exception as error:  # the exporter wraps whatever the module raises
            raise ThawkitError(
                f"module: torch cannot export {type(source.network).__name__} to ONNX: {_reason(error)}"
            ) from error
    assert program is not None
    return _tidy(program.model_proto, name), notes


def _tidy(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Name the dynamic dimensions N, H, W, and drop what tells about the machine the export ran on."""
    graph = model.graph
    graph.name = name
    # Each node carries a stack trace with the paths of source files.
    for item in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    # The intermediate shapes are in the tracer's symbols; they are inferred again from N, H and W.
    del graph.value_info[:]
    for value, letters in ((graph.input[0], "NHW"), (graph.output[0], "N"), (graph.output[1], "N")):
        dims = value.type.tensor_type.shape.dim
        for dim, letter in zip(dims[: len(letters)], letters, strict=True):
            if dim.HasField("dim_value"):
                raise ThawkitError(
                    f"module: its ONNX graph fixes dimension {letter} of {value.name} to {dim.dim_value}"
                )
            dim.dim_param = letter
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    return model


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost cause, which is what the network's author can act on."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Silence the exporter's log lines and warnings; yield a list that holds the telling ones at the end."""
    notes: list[str] = []
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield notes
    finally:
        logging.disable(before)
    about_itself = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)
    texts = (str(w.message).strip().splitlines() for w in caught if not issubclass(w.category, about_itself))
    notes.extend(dict.fromkeys(lines[0] for lines in texts if lines))
