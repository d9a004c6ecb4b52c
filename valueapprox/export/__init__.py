"""What was learned, for programs without Python: as an ONNX model, or as one C header. A format is a file here."""

from valueapprox.export.c import to_c
from valueapprox.export.graph import Graph, describe
from valueapprox.export.onnx import to_onnx
from valueapprox.export.writing import write

__all__ = ["Graph", "describe", "to_c", "to_onnx", "write"]
