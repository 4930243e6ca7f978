"""The names that results carry: columns, measures, contexts and rules, and limits of sizes.

They stand in results.csv, in configs and in flags, so their values never change. A new column gets
its name here; a new measure, context or rule also its sentence for readers, in
`jaxdiv.reporting.measures`.
"""

from collections.abc import Mapping
from types import MappingProxyType

# The columns of results.csv, in order; one number a row.
COLUMNS = (
    "loss",
    "seed",
    "context",
    "measure",
    "temperature",
    "gamma",
    "value",
    "low",
    "high",
    "n",
)
POOLED = "all"  # in the column `seed`: all seeds together
UNTRAINED = "untrained"  # in the column `loss`: a student before its first step

# Contexts: what teacher and student read while acceptance is measured.
CORPUS = "corpus"  # held-out documents
GENERATED = "generated"  # text that the teacher samples at temperature 1
GENERATED_GREEDY = "generated_greedy"  # text that the teacher decodes greedily
IMAGES = "images"  # held-out images, each a document of one prediction
CONTEXTS = (CORPUS, GENERATED, GENERATED_GREEDY, IMAGES)
# The temperature at which the teacher writes each context of its own text; 0 is greedy.
GENERATED_TEMPERATURES: Mapping[str, float] = MappingProxyType(
    {GENERATED: 1.0, GENERATED_GREEDY: 0.0}
)

# Rules: how a target accepts drafts; formulas in `jaxdiv.acceptance`.
SAMPLING = "sampling"  # rejection sampling of sampled drafts
GREEDY_DRAFT = "greedy_draft"  # the draft's likeliest token, verified by sampling the target
EXACT_MATCH = "exact_match"  # two independent samples that must be equal
TYPICAL = "typical"  # the draft's likeliest token above a threshold of the target; lossy
GREEDY_MATCH = "greedy_match"  # both sides greedy; as a measure it has the same name
COUPLED = "coupled"  # of decoding alone: two samples drawn with the same noise

# Measures. Acceptance under a rule that depends on a temperature:
ACCEPTANCE = "acceptance"
ACCEPTANCE_BY_RULE: Mapping[str, str] = MappingProxyType(
    {
        SAMPLING: ACCEPTANCE,
        GREEDY_DRAFT: "acceptance_greedy_draft",
        EXACT_MATCH: "acceptance_exact_match",
        TYPICAL: "acceptance_typical",
    }
)
ACCEPTANCE_AT = "acceptance_at"  # by position in the draft, which stands in the column `gamma`
ACCURACY = "accuracy"  # of images: how often the likeliest class is the label
DIFFERENCE = "difference"  # acceptance minus that of the reference loss
TAU = "tau"  # tokens per target call with sampled drafts, by the renewal recursion
TAU_GREEDY_DRAFT = "tau_greedy_draft"  # the same with greedy drafts
TAU_IID = "tau_iid"  # the same by Leviathan's formula for independent positions
DECODED_TAU = "decoded_tau"  # tokens per target call, counted while decoding
SPEED_UP = "speed_up"  # tokens a second over those of plain decoding
TOKENS_PER_CALL = (TAU, TAU_GREEDY_DRAFT, DECODED_TAU)

MAX_DOCUMENT_TOKENS = 2048  # of a document that is measured; the rest is cut off

# Drafts a round, gamma.
HEADLINE_GAMMA = 4  # in headlines, and wherever a caller names none
MAX_MEASURED_GAMMA = 8  # results have tokens per target call for every gamma up to this
MAX_DECODED_GAMMA = 64  # the longest draft that decoding verifies
HEADLINE_TEMPERATURE = 1.0  # losses are ranked by acceptance at this temperature
