"""Every finding of the audit: its code, which is stable, severity, message and evidence."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

MISTAKE, NOTE = "mistake", "note"


class Code(NamedTuple):
    """The severity of a finding and its message, in which {braces} are filled in."""

    severity: str
    message: str


_MISTAKES = {
    # What was meant, and what reaches the softmax.
    "other_divergence": "This is {divergence}, not {expected}.",
    "direction": "This is {divergence}, the other direction of {expected}.",
    "does_not_run": "It fails on ordinary logits: {error}",
    "nan_on_ordinary_logits": "It gives NaN or infinity on ordinary logits.",
    "double_softmax": "The {side} goes through softmax twice: probabilities are taken for logits.",
    "softmax_missing": "The {side}'s logits are taken for probabilities: a softmax is missing.",
    "log_softmax_missing": "The {side}'s logits are taken for log-probabilities.",
    "log_missing": "The {side}'s probabilities stand where log-probabilities belong.",
    "exp_missing": "The {side}'s log-probabilities stand where probabilities belong.",
    "sigmoid": "The {side} goes through a sigmoid where a softmax belongs.",
    "negated_logits": "The {side}'s logits enter with the wrong sign.",
    "classes_misaligned": "Student and teacher are compared with classes shifted by {shift}.",
    "classes_dropped": "The {which} class is left out.",
    "top_k": "Only {k} classes count, {how}.",
    "padded_vocabulary": "{count} classes that do not exist take mass from both sides.",
    "shift_variant": "Adding a constant to a row of the {side}'s logits changes it.",
    # The formula.
    "sign_flipped": "Its sign is wrong: training would drive student and teacher apart.",
    "jsd_direction": "A part of the Jensen-Shannon divergence runs from the mixture, KL(M‖·).",
    "jsd_weights": "The parts' weights are not those of the mixture M: {weights}.",
    "student_entropy_dropped": "Reverse KL lacks the student's entropy: its minimum is one class.",
    "absolute_terms": "Each class's term is taken without its sign.",
    "clamped_log": "Small probabilities are clamped{how}: the value is biased where they matter.",
    "low_precision": "It computes in less than float32: {digits}.",
    # Temperature.
    "temperature_one_side": "The student has temperature {student:.3g}, the teacher {teacher:.3g}.",
    "temperature_factor": "At T = {temperature:.3g} the factor is T^{got}, not T^{power}.",
    "labels_factor": "The factor T² is on the cross-entropy with labels too.",
    "temperature_on_labels": "The cross-entropy with labels is at T = {temperature:.3g}, not 1.",
    # Gradients.
    "teacher_not_detached": "Gradient flows into the teacher.",
    "swapped_arguments": "The gradient flows to the teacher alone: the arguments are swapped.",
    "no_gradient": "No gradient reaches the student.",
    "gradient_through_weight": "Gradient flows through the adaptive weight, a constant.",
    "wrong_gradient": "The gradient is not that of the value: a part of it is detached.",
    "nan_gradient": "The value is finite but its gradient is not, {where}.",
    # Positions and batches.
    "softmax_axis": "The softmax runs over the {axis}, not over the classes.",
    "rows_interact": "Positions of {axis} influence each other's loss.",
    "positions_shifted": "The student's position i meets the teacher's position i{shift:+d}.",
    "labels_shifted": "The student's position i meets the label of position i{shift:+d}.",
    "batch_dependence": "A row's loss depends on the other rows of the batch.",
    "batch_order": "Reordering the sequences of a batch changes it.",
    "dropped_count": "{count} position(s) a sequence give no loss but count in the mean.",
    "not_deterministic": "Two calls on equal input differ.",
    # Reduction and mask.
    "mean_over_vocabulary": "It is a mean over the V classes where a sum belongs.",
    "batchmean": "It is divided by the sequences B alone, not by the tokens B·L. For a loss of "
    "[N, V] alone, pass axes='NV'.",
    "reduction_unusual": "It grows as B^{batch} · L^{length}: neither a sum nor a mean.",
    "mask_ignored": "The mask changes nothing.",
    "mask_inverted": "The mask is inverted: positions with 1 are left out.",
    "mask_shifted": "The mask is read one position off.",
    "mask_count": "Masked positions are left out of the sum but counted in the mean.",
    "mask_leak": "Logits at masked positions change it.",
    # Edges.
    "nan_at_large_logits": "It is not finite at logits of ±{size:g}.",
    "float16_overflow": "It is not finite on float16 logits of ±30.",
    "wrong_at_minus_inf": "Classes of -inf change the value {where}.",
    "nan_at_equality": "It is not finite where student and teacher are equal.",
    "not_least_at_equality": "A student equal to the teacher is not where it is least.",
}
_NOTES = {
    "name_disagrees": "The function is called `{name}` but computes {divergence}.",
    "unidentified": "No loss of the registry, no weighted pair and no known mistake explains it.",
    "sides_apart": "It is a function of each side, added: it compares nothing.",
    "not_on_menu": "It is {form}, which is not in the registry.",
    "classes_unmatched": "It does not compare class with class: renumbering one side is not seen.",
    "vocabulary_cut": "Only the first {count} classes count, as of a padded vocabulary.",
    "entropy_dropped": "It is {divergence} without Σ p·log p, the teacher's entropy: harmless.",
    "teacher_term": "It is {divergence} and a function of the teacher alone: harmless.",
    "scale": "A factor of {scale:.4g} is not explained by reduction or temperature.",
    "temperature_factor_unclear": "At T = {temperature:.3g} the factor {scale:.4g} is unclear.",
    "gradient_unseen": "There are no gradients: whether the teacher is detached is unknown.",
    "shifts_labels": "It shifts the labels itself: give it unshifted labels.",
    "batch_weight": "Its adaptive weight is one for the whole batch: micro-batches change it.",
    "position_weights": "Positions of a sequence have different weights: {weights}.",
    "positions_dropped": "{count} position(s) a sequence give no loss.",
    "elementwise": "It gives one value a class; sum over the classes, as a mean divides by V.",
    "sequence_or_token": "Without a mask, token mean and sequence mean are the same.",
    "mask_of_next": "Position i is masked by i+1, the token that it predicts.",
    "mask_unclear": "How it divides under a mask is neither by tokens nor by sequences.",
    "mask_nan": "NaN at a masked position reaches the value: it is multiplied by 0.",
    "empty_mask": "A mask without a position gives {got}.",
    "large_logits": "It is not finite at logits of ±{size:g}.",
    "nan_at_minus_inf": "It is NaN where a class is -inf {where}: don't pad with -inf.",
    "argument_order": "It was called by name: its first parameter is the teacher.",
    "shape": "It was called with logits {shape}, as it does not take [B, L, V].",
    "eager": "JAX can't trace it ({error}): it was called value by value.",
    "extra_output": "It gives several outputs; the first was audited.",
}
CODES: Mapping[str, Code] = MappingProxyType(
    {code: Code(MISTAKE, message) for code, message in _MISTAKES.items()}
    | {code: Code(NOTE, message) for code, message in _NOTES.items()}
)


@dataclass(frozen=True)
class Evidence:
    """One observation: the input, the output that was expected, and the output."""

    input: str
    expected: str
    got: str


@dataclass(frozen=True)
class Finding:
    """A mistake or a note; `code` is a key of `CODES`."""

    code: str
    severity: str
    message: str
    evidence: Evidence

    def __str__(self) -> str:
        return f"{self.severity} {self.code}: {self.message}"


def finding(code: str, evidence: tuple[str, object, object], **details) -> Finding:
    """Returns the finding of a code, with (input, expected, got) as its evidence."""
    severity, message = CODES[code]
    texts = (part if isinstance(part, str) else f"{float(part):.6g}" for part in evidence)
    return Finding(code, severity, message.format(**details), Evidence(*texts))
