"""Every finding that an audit can make: its code, severity and what it means. Codes are stable."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

MISTAKE, NOTE = "mistake", "note"


class Code(NamedTuple):
    """Of a finding: `mistake` or `note`, and a sentence, in which {braces} are filled in."""

    severity: str
    message: str


CODES: Mapping[str, Code] = MappingProxyType(
    {
        # what was meant
        "other_divergence": Code(MISTAKE, "This is {found}, not {expected}."),
        "direction": Code(MISTAKE, "This is {found}, the other direction of {expected}."),
        "name_disagrees": Code(NOTE, "The function is called `{name}` but computes {found}."),
        "unidentified": Code(
            NOTE,
            "No loss of the menu, no sum of up to three, and no known mistake in one explains it.",
        ),
        "sides_apart": Code(
            NOTE,
            "Student and teacher never meet: it is a function of each, added, and compares nothing.",
        ),
        "not_on_menu": Code(NOTE, "It is {form}, which is not on the menu."),
        # what reaches the softmax
        "does_not_run": Code(MISTAKE, "It fails on ordinary logits: {error}"),
        "nan_on_ordinary_logits": Code(
            MISTAKE,
            "It gives NaN or infinity on ordinary logits, as a logarithm of negative numbers does.",
        ),
        "double_softmax": Code(
            MISTAKE, "The {side} goes through softmax twice: probabilities are taken for logits."
        ),
        "softmax_missing": Code(
            MISTAKE, "The {side}'s logits are taken for probabilities: a softmax is missing."
        ),
        "log_softmax_missing": Code(
            MISTAKE,
            "The {side}'s logits are taken for log-probabilities: a log_softmax is missing.",
        ),
        "log_missing": Code(
            MISTAKE,
            "The {side}'s probabilities stand where log-probabilities belong: a log is missing.",
        ),
        "exp_missing": Code(
            MISTAKE,
            "The {side}'s log-probabilities stand where probabilities belong: log taken twice.",
        ),
        "sigmoid": Code(MISTAKE, "The {side} goes through a sigmoid where a softmax belongs."),
        "negated_logits": Code(MISTAKE, "The {side}'s logits enter with the wrong sign."),
        "classes_misaligned": Code(
            MISTAKE, "Student and teacher are compared with classes shifted by {shift}."
        ),
        "classes_dropped": Code(MISTAKE, "The {which} class is left out of the {side}."),
        "class_order": Code(
            MISTAKE, "Renumbering the classes of student and teacher alike changes it."
        ),
        "classes_unmatched": Code(
            NOTE,
            "Renumbering the student's classes alone changes nothing: it does not compare class with class.",
        ),
        "top_k": Code(MISTAKE, "Only {k} classes of the {side} count, {how}."),
        "padded_vocabulary": Code(
            MISTAKE, "{count} classes that do not exist take mass from the {side}."
        ),
        "shift_variant": Code(
            MISTAKE,
            "Adding a constant to a row of the {side}'s logits changes it: no softmax is taken.",
        ),
        "vocabulary_size": Code(
            MISTAKE, "With {classes} classes it is another loss than with few."
        ),
        "vocabulary_scale": Code(NOTE, "Its factor changes with the number of classes."),
        "smoothed": Code(NOTE, "The {side} is mixed with {share:.3g} of the uniform distribution."),
        # its form
        "sign_flipped": Code(
            MISTAKE, "Its sign is wrong: training would drive student and teacher apart."
        ),
        "jsd_direction": Code(
            MISTAKE,
            "A part of the Jensen-Shannon divergence runs from the mixture, KL(M‖·), not to it.",
        ),
        "jsd_weights": Code(
            MISTAKE, "The parts' weights are not those of the mixture M: {weights}."
        ),
        "student_entropy_dropped": Code(
            MISTAKE,
            "Reverse KL lacks the student's entropy: its minimum is the teacher's top class alone.",
        ),
        "absolute_terms": Code(MISTAKE, "Each class's term is taken without its sign."),
        "outer_function": Code(NOTE, "It is {outer} of {found}."),
        "entropy_dropped": Code(
            NOTE,
            "It is {found} without Σ p·log p, the teacher's entropy: harmless, the gradient is the same.",
        ),
        "teacher_term": Code(
            NOTE,
            "It is {found} and a function of the teacher alone: harmless, the gradient is the same.",
        ),
        "offset": Code(NOTE, "A constant {offset:.4g} is added: harmless."),
        "bits": Code(NOTE, "It is in bits, not nats: 1/log 2 times as large."),
        "scale": Code(
            NOTE, "A factor of {scale:.4g} is not explained by reduction or temperature."
        ),
        "clamped_log": Code(
            MISTAKE, "Small probabilities are clamped{how}: the value is biased where they matter."
        ),
        "extreme_clamp": Code(NOTE, "At logits of ±100 the value differs from the exact one."),
        "low_precision": Code(MISTAKE, "It computes in less than float32: {digits}."),
        # temperature
        "temperature_one_side": Code(
            MISTAKE, "Temperature {student:.3g} is on the student, {teacher:.3g} on the teacher."
        ),
        "temperature_in_part": Code(
            MISTAKE, "The temperature is on one part of the {side}'s formula only."
        ),
        "temperature_factor": Code(
            MISTAKE,
            "At T = {temperature:.3g} the factor is T^{got}, not T^{power}: the gradient's size changes with T.",
        ),
        "temperature_factor_unclear": Code(
            NOTE,
            "T = {temperature:.3g} and the factor {scale:.4g}: whether T² is in it can't be told.",
        ),
        "labels_factor": Code(
            MISTAKE,
            "The factor T² is on the cross-entropy with labels too: it belongs on the part at T alone.",
        ),
        "temperature_on_labels": Code(
            MISTAKE,
            "The cross-entropy with labels is at T = {temperature:.3g} like the rest: it belongs at T = 1.",
        ),
        # gradient
        "teacher_not_detached": Code(MISTAKE, "Gradient flows into the teacher."),
        "swapped_arguments": Code(
            MISTAKE, "The gradient flows to the teacher and none to the student: arguments swapped."
        ),
        "no_gradient": Code(MISTAKE, "No gradient reaches the student."),
        "gradient_through_weight": Code(
            MISTAKE, "Gradient flows through the adaptive weight, which must be a constant."
        ),
        "wrong_gradient": Code(
            MISTAKE,
            "The gradient is not that of the value: a part is detached or its rule is wrong.",
        ),
        "nan_gradient": Code(MISTAKE, "The value is finite but its gradient is not, {where}."),
        "gradient_unseen": Code(
            NOTE, "Gradients can't be seen: whether the teacher is detached is unknown."
        ),
        # positions
        "softmax_axis": Code(MISTAKE, "The softmax runs over the {axis}, not over the classes."),
        "rows_interact": Code(MISTAKE, "Positions of {axis} influence each other's loss."),
        "positions_shifted": Code(
            MISTAKE, "The student's position i is compared with the teacher's position i{shift:+d}."
        ),
        "labels_shifted": Code(
            MISTAKE, "The student's position i is compared with the label of position i{shift:+d}."
        ),
        "shifts_labels": Code(
            NOTE,
            "It shifts the labels itself, so that position i meets the next one: give it unshifted labels.",
        ),
        "batch_dependence": Code(MISTAKE, "A row's loss depends on the other rows of the batch."),
        "batch_weight": Code(
            NOTE,
            "Its adaptive weight is one for the whole batch, so the cut into micro-batches matters.",
        ),
        "batch_order": Code(MISTAKE, "Reordering the sequences of a batch changes it."),
        "position_weights": Code(
            NOTE, "Positions of a sequence have different weights: {weights}."
        ),
        "positions_dropped": Code(NOTE, "{count} position(s) a sequence give no loss."),
        "dropped_count": Code(
            MISTAKE, "{count} position(s) a sequence give no loss but are counted in the mean."
        ),
        "not_deterministic": Code(MISTAKE, "Two calls on equal input differ."),
        # reduction
        "mean_over_vocabulary": Code(
            MISTAKE, "It is divided by the number of classes: a mean over V where a sum belongs."
        ),
        "batchmean": Code(
            MISTAKE,
            "It is divided by the sequences B alone, not by the tokens B·L: longer texts weigh more. If it is only "
            "ever called with [N, V], audit it with axes='NV'.",
        ),
        "reduction_unusual": Code(
            MISTAKE, "It grows as B^{batch} · L^{length}, which is neither a sum nor a mean."
        ),
        "elementwise": Code(
            NOTE, "It gives one value a class; sum over the classes, as a mean divides by V."
        ),
        "sequence_or_token": Code(
            NOTE, "Token mean and sequence mean can't be told apart without a mask argument."
        ),
        "mask_ignored": Code(MISTAKE, "The mask changes nothing."),
        "mask_inverted": Code(MISTAKE, "The mask is inverted: positions with 1 are left out."),
        "mask_shifted": Code(MISTAKE, "The mask is read one position off."),
        "mask_of_next": Code(
            NOTE,
            "Position i is masked by i+1, the token that it predicts: right for a mask of tokens.",
        ),
        "mask_count": Code(
            MISTAKE, "Masked positions are left out of the sum but counted in the mean."
        ),
        "mask_leak": Code(MISTAKE, "Logits at masked positions change it."),
        "mask_unclear": Code(
            NOTE, "How it divides under a mask is neither by tokens nor by sequences."
        ),
        "mask_nan": Code(
            NOTE,
            "NaN at a masked position gets into the value: it is multiplied by 0, not left out.",
        ),
        "empty_mask": Code(NOTE, "A mask without a position gives {got}."),
        # edges
        "nan_at_large_logits": Code(MISTAKE, "It is not finite at logits of ±{size:g}."),
        "large_logits": Code(NOTE, "It is not finite at logits of ±{size:g}."),
        "float16_overflow": Code(MISTAKE, "It is not finite on float16 logits of ±30."),
        "nan_at_minus_inf": Code(
            NOTE, "It is NaN where a class is -inf {where}: don't pad with -inf."
        ),
        "wrong_at_minus_inf": Code(MISTAKE, "Classes of -inf change the value{where}."),
        "nan_at_equality": Code(MISTAKE, "It is not finite where student and teacher are equal."),
        "not_least_at_equality": Code(
            MISTAKE, "A student equal to the teacher is not where it is least."
        ),
        # how it was called
        "argument_order": Code(NOTE, "It was called by name: its first parameter is the teacher."),
        "shape": Code(NOTE, "It was called with logits {shape}, as it does not take [B, L, V]."),
        "eager": Code(NOTE, "It can't be traced by JAX ({error}): it was called value by value."),
        "extra_output": Code(NOTE, "It gives several outputs; the first was audited."),
    }
)
