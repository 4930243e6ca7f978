"""GGUF files that the package gguf writes: models, tokenizers, and what is refused."""

import functools
import itertools
import json
import pathlib

import gguf
import numpy as np
import pytest
import tokenizers
from flax import nnx
from gguf import GGMLQuantizationType as Type
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from jaxdiv.data import Tokenizer, gguf_tokenizer
from jaxdiv.models import families, gguf_header, llama, safetensors_io
from jaxdiv.training import teacher_sources
from tests import gguf_files, llama_folders
from tests.fixtures_data import sentences

SIZES = gguf_files.SIZES
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_FIELDS = {"type": "yarn", "factor": 4.0, "original_context_length": 16}
DIVISORS = [1.0, 1.5, 2.0, 8.0]
# Of each family: its options, the architecture, a type of its matrices, and more fields.
MODELS = {
    "llama": ({"tied_head": True}, "llama", Type.Q8_0, {}),
    "llama3": ({"rope_scaling": LLAMA3}, "llama", Type.F16, {}),
    "divisors": (
        {"rope_scaling": {"rope_type": "divisors", "divisors": DIVISORS}},
        *("llama", Type.F32, {}),
    ),
    "biased": ({"attention_bias": "qkvo", "mlp_bias": True}, "llama", Type.Q5_0, {}),
    "qwen2": (
        {"attention_bias": "qkv", "tied_head": True, "rope_scaling": YARN},
        *("qwen2", Type.BF16),
        {f"qwen2.rope.scaling.{name}": x for name, x in YARN_FIELDS.items()},
    ),
    "qwen3": ({"query_key_norm": True, "head_width": 16}, "qwen3", Type.Q4_1, {}),
    "gemma3": (
        {
            **{"head_width": 16, "tied_head": True, "query_key_norm": True, "post_norms": True},
            **{"windows": "5,0", "window_rope_base": 10000.0, "activation": "gelu_tanh"},
            **{"query_scale": 0.25, "embedding_scale": 32**0.5},
        },
        *("gemma3", Type.Q5_1),
        {"gemma3.attention.sliding_window": 5, "gemma3.attention.sliding_window_pattern": 2},
    ),
}
TOKENS = np.random.default_rng(0).integers(0, SIZES["vocab_size"], 20)


def llama3_divisors(planes, base):
    """The divisors that llama.cpp writes for Llama 3."""
    divisors = []
    for plane in range(planes):
        wavelength = 2 * np.pi * base ** (plane / planes)
        part = (8192 / wavelength - 1) / (4 - 1)
        divisors.append(1 / ((1 - part) / 8 + part) if 0 < part < 1 else (1 if part >= 1 else 8))
    return divisors


@functools.cache
def make(name):
    """A model's architecture, fields and tensors as llama.cpp has them."""
    options, architecture, kind, more = MODELS[name]
    options = {"rope_base": 300000.0 if name == "llama3" else 555.0, **options}
    rule = options.get("rope_scaling", {})
    if rule:
        options["rope_scaling"] = json.dumps(rule, sort_keys=True)
    decoder = llama_folders.random_decoder(**SIZES, **options)
    tensors = gguf_files.convert(
        architecture, llama.decoder_tensors(decoder), SIZES | options, kind
    )
    if rule.get("rope_type") in ("llama3", "divisors"):
        divisors = rule.get("divisors") or llama3_divisors(4, 300000.0)
        tensors["rope_freqs.weight"] = np.array(divisors, np.float32), Type.F32
    return decoder, architecture, gguf_files.sizes(architecture, SIZES | options) | more, tensors


@pytest.mark.parametrize("name", MODELS)
def test_a_file_gives_its_model(name, tmp_path):
    decoder, architecture, fields, tensors = make(name)
    gguf_files.write(tmp_path / "model.gguf", architecture, fields, tensors)
    read = llama.read(tmp_path / "model.gguf")
    assert read.options == decoder.options
    # The tensors that went in, as their type rounds them.
    kind, rounded = MODELS[name][2], {}
    for key, x in llama.decoder_tensors(decoder).items():
        x = np.ascontiguousarray(x)
        if x.ndim > 1:
            x = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
        rounded[key] = x
    for key, x in llama.decoder_tensors(read).items():
        np.testing.assert_array_equal(x, rounded[key], err_msg=key)
    sizes = vars(decoder.options)
    logits = nnx.jit(lambda model: model(TOKENS[None]).logits)(read)[0]
    expected = llama_folders.forward(rounded, TOKENS, sizes)[1]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=3e-5)
    if name == "divisors":
        with pytest.raises(ValueError, match="a decoder's rope_scaling by divisors"):
            families.family_of(read.options)
        return
    # And the same model as a folder.
    llama.write_decoder(tmp_path, read, end_of_text=1, longest=64)
    folder = llama.ModelFiles(tmp_path)
    assert folder.options == read.options
    for key, x in safetensors_io.Tensors(tmp_path, ignore="?").shapes.items():
        assert rounded[key].shape == x


PATH = pathlib.Path("x.gguf")
# The patterns of the tokenizer.json of these models.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ORIGINALS = {
    "smollm": [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(WORDS % r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(WORDS % r"\p{N}"), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ],
}
TEXTS = [
    *("", " ", "  two  spaces\n\n\tand a tab \n", "It's 12345 o'CLOCK, I'LL say 3.14159!"),
    *("e\u0301 é 你好 🎉", "a <|end|> b", "x\r\n  y", " whole_word(whole, word);", "١٢٣٤ Ⅷ½"),
    *sentences(10),
]


def original(pre):
    """A byte-level tokenizer of a family, and its special tokens."""
    bpe = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    bpe.normalizer = normalizers.NFC() if pre == "qwen2" else None
    bpe.pre_tokenizer = pre_tokenizers.Sequence(ORIGINALS[pre])
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    bpe.train_from_iterator(["12345 I'LL say it's whole " * 3, *sentences(50)], trainer)
    settings = json.loads(bpe.to_str())
    # A token that no merges give, which Llama 3 takes and others never do.
    settings["model"]["vocab"]["ĠoZZo"] = len(settings["model"]["vocab"])
    bpe = tokenizers.Tokenizer.from_str(json.dumps(settings))
    bpe.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|begin|>")])
    return bpe


@pytest.mark.parametrize("pre", ORIGINALS)
def test_a_byte_level_tokenizer_is_the_one_that_the_file_was_written_from(pre):
    bpe = original(pre)
    fields = gguf_files.tokenizer_fields(bpe, pre)
    read = gguf_tokenizer.read(fields, PATH, vocab_size=bpe.get_vocab_size() + 3)
    expected = Tokenizer(bpe, "<|end|>")
    for text in [*TEXTS, "an oZZo"]:
        assert read.encode(text) == expected.encode(text)
        assert read.decode(read.encode(text)) == expected.decode(expected.encode(text))
    assert read.vocab_size == expected.vocab_size + 3
    np.testing.assert_array_equal(read.byte_lengths[:-3], expected.byte_lengths)
    assert read.end_of_text == expected.end_of_text
    begin = [bpe.token_to_id("<|begin|>")]
    assert read.begin == (begin if pre == "llama-bpe" else [])
    for says in (True, False):
        fields["tokenizer.ggml.add_bos_token"] = says
        read = gguf_tokenizer.read(fields, PATH, vocab_size=bpe.get_vocab_size())
        assert read.begin == (begin if says else [])


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
SPACES = "▁▁"


def sentence_piece(seed, prefix):
    """The fields of a SentencePiece model whose pieces have random scores.

    Without a space before texts, as Gemma's, it has a user's piece, too.
    """
    draw = np.random.default_rng(seed)
    letters, pieces = ["▁", *"abcd", "é"], set()
    for _ in range(60):
        pieces.add("".join(draw.choice(letters[:4], draw.integers(2, 5))))
    pieces = sorted(pieces - {SPACES})
    tokens = [*PIECES, *letters, *pieces, SPACES]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 260), 1 if prefix else 4]
    scores = [0.0] * 259 + [-1e3] * len(letters) + [*-draw.permutation(len(pieces)) - 1.0, 0.0]
    fields = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    ids["add_space_prefix"] = prefix
    return {f"tokenizer.ggml.{name}": x for name, x in (fields | ids).items()}


def split(text, fields):
    """SentencePiece's rule: users' pieces first, then always the neighbours of the best score, the
    leftmost of equal ones; what is no piece in the end is written in bytes."""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    scores = {
        piece: score
        for piece, score, kind in zip(tokens, fields["tokenizer.ggml.scores"], types, strict=True)
        if kind == 1
    }
    ids, text = [], text.replace(" ", "▁")
    for i, part in enumerate([text] if SPACES in scores else text.split(SPACES)):
        ids += [tokens.index(SPACES)] * (i > 0)
        symbols = list(part)
        while True:
            pairs = [
                (scores.get(a + b), -k) for k, (a, b) in enumerate(itertools.pairwise(symbols))
            ]
            pairs = [pair for pair in pairs if pair[0] is not None]
            if not pairs:
                break
            k = -max(pairs)[1]
            symbols[k : k + 2] = ["".join(symbols[k : k + 2])]
        for symbol in symbols:
            is_piece = symbol in scores
            ids += [tokens.index(symbol)] if is_piece else [3 + b for b in symbol.encode()]
    return ids


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentence_piece_model_merges_by_its_scores(prefix):
    draw = np.random.default_rng(0)
    for seed in range(5):
        fields = sentence_piece(seed, prefix)
        read = gguf_tokenizer.read(fields, PATH, vocab_size=400)
        assert read.begin == [1]
        for _ in range(40):
            text = "".join(draw.choice([*"abbcd  ", "é", "你", "<s>"], draw.integers(1, 30)))
            ids = read.encode(text)
            assert ids == split(" " * prefix + text, fields), text
            assert read.decode(ids) == text
            assert read.byte_lengths[ids].sum() == len(text.encode()) + prefix
            # Piece by piece, as when it is decoded.
            pieces = [read.decode([i], continues=True) for i in ids]
            if "\N{REPLACEMENT CHARACTER}" not in "".join(pieces):
                assert "".join(pieces) == " " * prefix + text


BASE = gguf_files.llama_parts()
V = len(BASE[0]["tokenizer.ggml.tokens"])


def test_the_older_field_of_linear_positions_is_read(tmp_path):
    fields, tensors = BASE
    path = tmp_path / "model.gguf"
    gguf_files.write(path, "llama", {**fields, "llama.rope.scale_linear": 4.0}, tensors)
    rule = llama.ModelFiles(path).options.rope_scaling
    assert json.loads(rule) == {"rope_type": "linear", "factor": 4.0}
    fields = {**fields, "llama.rope.scale_linear": 4.0, "llama.rope.scaling.type": "none"}
    gguf_files.write(path, "llama", fields, tensors)
    assert not llama.ModelFiles(path).options.rope_scaling


def read(path):
    return teacher_sources.find(path).checked_sizes()


def test_the_file_is_a_teacher(tmp_path):
    gguf_files.write(tmp_path / "model.gguf", "llama", *BASE)
    sizes = read(tmp_path / "model.gguf")
    assert sizes["data.vocabulary"] == V
    assert sizes["teacher.kind"] == "decoder"
    assert sizes["teacher.width"] == 32


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_files.write(path, "llama", *BASE)
    whole = path.read_bytes()
    _, entries = gguf_header.read(path)
    last = max(entry.start for entry in entries.values())
    for end in {*range(0, 64), *range(64, last, len(whole) // 150), last - 1, last}:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"model\.gguf.*(GGUF file|cut off)") as error:
            read(path)
        assert "\n" not in str(error.value)


TOKENIZER = "tokenizer.ggml."
TOKENS_FIELD, TYPES_FIELD = f"{TOKENIZER}tokens", f"{TOKENIZER}token_type"
# What is changed (None: left out), and what the message says.
REFUSED = {
    "architecture": ({"general.architecture": "rwkv"}, "'rwkv' is not known; known: llama"),
    "pre": ({f"{TOKENIZER}pre": "tekken"}, "pre` = 'tekken' is not known; known: smollm"),
    "kind": ({f"{TOKENIZER}model": "t5"}, "model` = 't5' is not known; known: gpt2, llama"),
    "no tokenizer": ({f"{TOKENIZER}tokens": None}, "there is no tokenizer"),
    "same tokens": ({f"{TOKENIZER}tokens": ["a"] * V}, "tokens` must be different"),
    "types": ({f"{TOKENIZER}token_type": [1]}, "token_type` must have one value for each"),
    "merges": ({f"{TOKENIZER}merges": ["ab"]}, "merges` must be texts"),
    "other merges": ({f"{TOKENIZER}merges": ["aaa bbb"]}, "can't be built"),
    "scores": ({f"{TOKENIZER}model": "llama"}, "scores` must have one value for each"),
    "end": ({f"{TOKENIZER}eos_token_id": V}, f"eos_token_id` must be .*, is {V}"),
    "begin": (
        {f"{TOKENIZER}bos_token_id": None, f"{TOKENIZER}add_bos_token": True},
        "bos_token_id` must be the id of a token, is None",
    ),
    "longrope": (
        {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0},
        "must have a `rope_type` of default, .* got 'longrope'",
    ),
    "other kind": ({f"{TOKENIZER}model": ["gpt2"]}, "is not known; known: gpt2"),
    "other tokens": ({f"{TOKENIZER}tokens": 3}, "there is no tokenizer"),
    "base": (
        {"llama.rope.freq_base": "fast", "rope_freqs.weight": np.ones(4)},
        "llama.rope.freq_base` must be a number above 0, is 'fast'",
    ),
    "scaling": ({"llama.rope.scaling.alpha": 2.0}, "llama.rope.scaling.alpha is not known"),
    "half": ({"llama.rope.dimension_count": 4}, "rope.dimension_count` must be .* head, 8, is 4"),
    "soft cap": ({"llama.final_logit_softcapping": 30.0}, "final_logit_softcapping` must be None"),
    "no depth": ({"llama.block_count": None}, "num_hidden_layers` must be a whole number"),
    "depth": ({"llama.block_count": 2**30}, "num_hidden_layers` must be a whole number in"),
    "deep": ({"llama.block_count": 99}, "num_hidden_layers` is 99, more than"),
    "width": ({"llama.embedding_length": 64}, r"embed_tokens.weight is \[\d+, 32\], not"),
    "heads": ({"llama.attention.head_count": 6}, "must divide the width 32"),
    "many heads": (
        {"llama.attention.head_count_kv": [2, 2]},
        r"key_value_heads` .* \[2, 2",
    ),
    "vocabulary": (
        {name: [*BASE[0][name], x] for name, x in ((TOKENS_FIELD, "zz"), (TYPES_FIELD, 1))},
        f"has {V + 1} tokens, more than the `vocab_size` {V}",
    ),
    "alignment": ({"general.alignment": 0}, "general.alignment"),
    "missing": ({"blk.1.attn_q.weight": None}, "lacks the tensor model.layers.1.self_attn.q_proj"),
    "no embedding": ({"token_embd.weight": None}, "lacks the tensor token_embd.weight"),
    "surplus": ({"blk.1.extra.weight": np.ones(4)}, "holds blk.1.extra.weight, which"),
    "shape": ({"output_norm.weight": np.ones(31)}, r"model.norm.weight is \[31\], not \[32\]"),
    "integers": ({"output_norm.weight": np.ones(32, np.int8)}, "type 24 of GGML, which .* can't"),
    "axes": ({"output_norm.weight": np.ones((1,) * 4)}, r"norm.weight is \[1, 1, 1, 1\], not"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_before_work(name, tmp_path):
    changes, message = REFUSED[name]
    fields, tensors = map(dict, BASE)
    for key, value in changes.items():
        holder = tensors if key in tensors or isinstance(value, np.ndarray) else fields
        holder.pop(key, None)
        if isinstance(value, np.ndarray):
            holder[key] = (value, None) if value.dtype == np.int8 else (np.float32(value), Type.F32)
        elif value is not None:
            holder[key] = value
    architecture = fields.pop("general.architecture", "llama")
    path = tmp_path / "model.gguf"
    gguf_files.write(path, architecture, fields, tensors)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_values_that_are_not_finite_are_refused(tmp_path):
    fields, tensors = BASE
    norm = np.ones(32, np.float32)
    norm[3] = np.inf
    changed = tensors | {"blk.0.ffn_norm.weight": (norm, Type.F32)}
    gguf_files.write(tmp_path / "model.gguf", "llama", fields, changed)
    message = r"model\.gguf: model\.layers\.0\.post_attention_layernorm\.weight has values that are"
    with pytest.raises(ValueError, match=message):
        llama.read(tmp_path / "model.gguf")


@pytest.mark.parametrize("at", [8, 16])
def test_insane_counts_ask_for_no_memory(at, tmp_path):
    path = tmp_path / "model.gguf"
    gguf_files.write(path, "llama", *BASE)
    content = bytearray(path.read_bytes())
    content[at : at + 8] = (2**62).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"can't read .* as a GGUF file"):
        read(path)
    for kind in (4, 8):  # an array of 2^62 integers, and one of texts
        header = b"GGUF" + np.array([3], "<u4").tobytes() + np.array([0, 1], "<u8").tobytes()
        field = np.array([1], "<u8").tobytes() + b"a" + np.array([9, kind], "<u4").tobytes()
        path.write_bytes(header + field + np.array([2**62], "<u8").tobytes())
        with pytest.raises(ValueError, match=r"can't read .* cut off"):
            read(path)
