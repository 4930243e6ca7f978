"""Flax NNX models: the decoder, the draft models that learn from it, and plain generation."""

from jaxdiv.models.builders import CLASSIFIER, KANGAROO, build_student, build_teacher
from jaxdiv.models.classifier import Classifier, ClassifierStudent
from jaxdiv.models.decoder import Cache, Decoder, TeacherOutput
from jaxdiv.models.draft_vocabulary import DraftVocabulary
from jaxdiv.models.generation import draft_text, generate
from jaxdiv.models.kangaroo import KangarooAdapter
from jaxdiv.models.layers import DecoderOptions
from jaxdiv.models.student import DecoderStudent, Drafter, Student

__all__ = [
    "CLASSIFIER",
    "KANGAROO",
    "Cache",
    "Classifier",
    "ClassifierStudent",
    "Decoder",
    "DecoderOptions",
    "DecoderStudent",
    "DraftVocabulary",
    "Drafter",
    "KangarooAdapter",
    "Student",
    "TeacherOutput",
    "build_student",
    "build_teacher",
    "draft_text",
    "generate",
]
