"""Flax NNX models: the decoder, the draft models that learn from it, plain generation."""

from jaxdiv.models.builders import CLASSIFIER, build_student, build_teacher
from jaxdiv.models.classifier import Classifier, ClassifierStudent
from jaxdiv.models.decoder import Cache, Decoder, TeacherOutput
from jaxdiv.models.generation import draft_text, generate
from jaxdiv.models.students import DecoderStudent, KangarooAdapter, Student

__all__ = [
    "CLASSIFIER",
    "Cache",
    "Classifier",
    "ClassifierStudent",
    "Decoder",
    "DecoderStudent",
    "KangarooAdapter",
    "Student",
    "TeacherOutput",
    "build_student",
    "build_teacher",
    "draft_text",
    "generate",
]
