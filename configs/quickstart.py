"""All ten losses, three seeds each, on the Python standard library's own sources.

python -m experiments.distill --config=configs/quickstart.py --workdir=runs/quickstart
"""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.losses = "ce,ce_argmax,ce_data,kl,rkl,jeffreys,jsd,tv,nla,lk_hybrid"  # what jaxdiv.get takes, by commas
    config.seeds = 3  # students a loss; student i draws its initial values from seed + i
    config.seed = 0  # also shuffles the data and draws the teacher
    config.temperature = 1.0  # of distillation, on both sides
    config.dtype = "float32"  # of activations (or bfloat16); parameters stay float32

    config.data = ml_collections.ConfigDict()
    config.data.kind = "text"  # or images, of which each is a row of one prediction
    config.data.source = "python_stdlib"  # or the name of a prepared TFDS data set
    config.data.feature = "text"  # the TFDS feature to read
    config.data.label = "label"  # of images: the feature with their classes
    config.data.channels = 1  # of images
    config.data.directory = (
        ""  # TFDS folder; empty: the work folder for python_stdlib, else TFDS's own
    )
    config.data.files = ""  # a glob of text files, read in place of `source`
    config.data.vocabulary = 1024  # of the byte-level BPE tokenizer; of images the classes
    config.data.sequence_length = 96
    config.data.context = (
        "corpus"  # students read it; or what the teacher or the student writes in training
    )
    config.data.context_share = 0.5  # of a batch's rows that are written, if not corpus
    config.data.context_prompt = 16  # tokens of the corpus before what is written

    config.teacher = ml_collections.ConfigDict()
    # Work folder of a run, or a Llama folder, whose teacher and tokenizer to take; its sizes
    # replace those given here.
    config.teacher.checkpoint = ""
    config.teacher.kind = "decoder"  # or classifier, of images
    config.teacher.depth = 4
    config.teacher.width = 192
    config.teacher.heads = 6
    config.teacher.kv_heads = 2
    config.teacher.mlp_width = 512
    config.teacher.padded_vocabulary = (
        0  # rows of embeddings and heads, its own and a decoder student's; 0: no more
    )
    config.teacher.rope_base = 10000.0
    config.teacher.norm_epsilon = 1e-5  # of the students' norms too
    config.teacher.steps = 500
    config.teacher.batch_size = 24
    config.teacher.optimizer = _optimizer(learning_rate=4e-3, final_fraction=0.1, beta2=0.95)

    config.student = ml_collections.ConfigDict()
    config.student.kind = (
        "kangaroo"  # or decoder, an independent small model, or classifier, of images
    )
    config.student.exit_layer = (
        2  # kangaroo: reads the teacher's hidden state after this many layers
    )
    config.student.heads = 6
    config.student.kv_heads = 2
    config.student.depth = 1  # decoder only, as are the next two
    config.student.width = 96
    config.student.mlp_width = 256
    config.student.steps = 240
    config.student.batch_size = 12
    config.student.learning_rates = (
        ""  # of single losses, as in `tv: 1e-2; nla: 1e-2`, in place of the optimizer's
    )
    # Above about 5e-3 training amplifies rounding so that ce and kl, whose gradients are equal,
    # part.
    config.student.optimizer = _optimizer(learning_rate=3e-3, final_fraction=0.0, beta2=0.999)

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.temperatures = (0.25, 0.5, 1.0, 2.0, 5.0, 20.0)
    config.evaluation.contexts = "corpus,generated,generated_greedy"
    config.evaluation.rules = (
        "sampling,greedy_draft,greedy_match"  # and exact_match, typical; sampling ranks
    )
    config.evaluation.documents = 64  # held-out documents, at most
    config.evaluation.document_tokens = 288  # of each, at most (2,048 is the limit)
    config.evaluation.prompt_tokens = 32  # of a document, before the teacher's own text
    config.evaluation.generated_tokens = 256

    # How many devices share what, -1 for all that are left: the seeds of each loss, the rows of a
    # batch, those rows and the parameters, the classes of the vocabulary.
    config.mesh = ml_collections.ConfigDict()
    config.mesh.student = 1
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every = 50  # steps between saves
    config.checkpoint.keep = 2  # newest steps kept

    config.log = ml_collections.ConfigDict()
    config.log.every = 20  # steps between measurements of acceptance on a validation batch
    return config


def _optimizer(*, learning_rate, final_fraction, beta2):
    optimizer = ml_collections.ConfigDict()
    optimizer.name = "adamw"  # or sgd
    optimizer.learning_rate = learning_rate
    optimizer.warmup_steps = 20
    optimizer.final_fraction = final_fraction  # of the learning rate, where the cosine ends
    optimizer.weight_decay = 0.01
    optimizer.beta1 = 0.9  # SGD's momentum too
    optimizer.beta2 = (
        beta2  # short runs under tv and nla, whose gradients are noisy, want it near 1
    )
    optimizer.epsilon = 1e-8
    optimizer.clip_norm = 1.0  # 0 for no clipping
    return optimizer
