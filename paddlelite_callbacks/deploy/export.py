"""Moved to `export.paddle_program`, `export.onnx_export` and others."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "Artefact": "export.artefact",
        "ExportError": "errors",
        "copy_network": "nn.surgery",
        "export_onnx": "export.onnx_export",
        "export_paddle": "export.paddle_program",
        "flat_outputs": "nn.nested",
        "check_program_format": "export.paddle_program",
        "staged_folder": "utils.atomic_files",
    },
)
