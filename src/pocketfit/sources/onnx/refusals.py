"""Why an operator is not converted: one sentence, with what to do about it."""

from __future__ import annotations

from pocketfit.sources.onnx.file.graph import Node

CUT = "cut the file before it (onnx.utils.extract_model), or export the network without it"
INTEGER = "works on integers and can't be trained: take the float network that the file was made from"
LOOPS = "is a loop, whose operators can't be trained or quantized one by one: export it with a fixed number of steps"
RANDOM = "draws random numbers, so that the network gives different outputs each time: export it for inference"
TEXTS = f"works on texts, which is no part of a network: {CUT}"
BOXES = f"picks boxes, which has no gradient and no operator in torch: {CUT}"
UNKNOWN = f"has no form in torch here: {CUT}"
OTHER_DOMAIN = "is no standard operator of ONNX: export the network without it"

REASONS = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"), INTEGER),
    **dict.fromkeys(("QuantizeLinear", "DynamicQuantizeLinear"), INTEGER),
    **dict.fromkeys(("Loop", "Scan", "SequenceMap"), LOOPS),
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), RANDOM),
    **dict.fromkeys(("Multinomial", "Bernoulli"), RANDOM),
    **dict.fromkeys(("StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"), TEXTS),
    "ImageDecoder": f"decodes images, which is no part of a network: {CUT}",
    **dict.fromkeys(("NonMaxSuppression", "RoiAlign", "MaxRoiPool"), BOXES),
}


def why_refused(node: Node) -> str:
    """ "the operator NonMaxSuppression 'nms' picks boxes, ...: cut the file before it ..." """
    if node.domain:
        return f"the operator {node.domain}.{node} {OTHER_DOMAIN}"
    return f"the operator {node} {REASONS.get(node.operator, UNKNOWN)}"
