"""The real files are fetched as those of tests/sources/onnx are."""

from tests.sources.onnx.conftest import magika, paddle_ocr  # noqa: F401  (fixtures)
