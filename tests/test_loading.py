"""Which checkpoints are taken, which are refused in one line, and what a model built from a configuration is."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, BertModel, PreTrainedTokenizerFast

from kd_trainer.arguments import ModelArguments
from kd_trainer.building import build_classifier
from kd_trainer.errors import InputError
from kd_trainer.loading import fit_length, load_classifier, load_config, load_tokenizer, named_labels

ARGS = ModelArguments()
NAMES = ["体育", "财经", "科技"]
TINY = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoint"


@pytest.fixture
def save(folder, make_student, make_teacher):
    """A function that saves a tiny `"bert"` or `"bilstm"` and returns it."""

    def save(kind, **config):
        model = {"bert": make_teacher, "bilstm": make_student}[kind](**config)
        model.save_pretrained(folder)
        return model

    return save


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def assert_refused(match, function, *args):
    with pytest.raises(InputError, match=match) as error:
        function(*args)
    assert "\n" not in str(error.value)


# Refused


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "a/b/c", "missing", "some/missing"])
@pytest.mark.parametrize("load", [load_classifier, load_config, load_tokenizer])
def test_missing_folder_is_refused(name, load):
    assert_refused(name, load, name, ARGS)


@pytest.mark.parametrize("missing, match", [("config.json", "config.json"), ("model.safetensors", "weights")])
@pytest.mark.parametrize("kind", ["bert", "bilstm"])
def test_incomplete_folder_is_refused(save, folder, kind, missing, match):
    save(kind)
    (folder / missing).unlink()
    assert_refused(match, load_classifier, str(folder), ARGS)


def test_pickled_weights_are_refused(save, folder):
    model = save("bert")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert_refused("safetensors", load_classifier, str(folder), ARGS)
    assert_refused("safetensors", load_classifier, str(folder), ARGS, NAMES)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_damaged_file_is_refused(save, folder, file):
    save("bert")
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    assert_refused("cannot be loaded", load_classifier, str(folder), ARGS)


@pytest.mark.parametrize("label_names", [None, NAMES], ids=["to score", "to fine-tune"])
@pytest.mark.parametrize("kind, other", [("bert", "bilstm"), ("bilstm", "bert")])
def test_weights_of_another_architecture_are_refused(save, folder, kind, other, label_names):
    save(kind)
    config = (folder / "config.json").read_text()
    save(other)
    (folder / "config.json").write_text(config)
    assert_refused("checkpoint", load_classifier, str(folder), ARGS, label_names)


@pytest.mark.parametrize("label_names", [None, NAMES], ids=["to score", "to fine-tune"])
@pytest.mark.parametrize("kind, part", [("bert", "bert.encoder"), ("bert", "bert.embeddings"), ("bilstm", "layers.0")])
@pytest.mark.parametrize("how", ["renamed", "reshaped"])
def test_encoder_that_is_not_in_the_checkpoint_is_refused(save, folder, kind, part, how, label_names):
    save(kind)

    def change(weights):
        if how == "renamed":
            return {name.replace(part, "module." + part): weight for name, weight in weights.items()}
        return {name: weight[..., 1:].clone() if name.startswith(part) else weight for name, weight in weights.items()}

    rewrite(folder, change)
    assert_refused("checkpoint", load_classifier, str(folder), ARGS, label_names)


@pytest.mark.parametrize("kind", ["bert", "bilstm"])
def test_headless_checkpoint_is_refused_where_the_head_is_needed(save, folder, kind):
    save(kind)
    rewrite(folder, lambda weights: {name: w for name, w in weights.items() if not name.startswith("classifier.")})
    assert_refused("head", load_classifier, str(folder), ARGS)


# Taken


@pytest.mark.parametrize("pooler", [True, False])
def test_headless_encoder_is_fine_tuned(save, folder, pooler):
    encoder = BertModel(save("bert").config, add_pooling_layer=pooler)
    encoder.save_pretrained(folder)
    model = load_classifier(str(folder), ARGS, NAMES)
    assert named_labels(model.config) == NAMES and model.config.problem_type == "single_label_classification"
    loaded = model.bert.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in encoder.state_dict().items())
    assert model.classifier.weight.shape == (3, 16) and model.classifier.weight.std() > 0


@pytest.mark.parametrize("kind", ["bert", "bilstm"])
def test_head_of_another_size_is_replaced(save, folder, kind):
    old = save(kind).state_dict()
    model = load_classifier(str(folder), ARGS, ["a", "b", "c", "d", "e"])
    assert model.num_labels == model.config.num_labels == len(model.classifier.weight) == 5
    assert named_labels(model.config) == ["a", "b", "c", "d", "e"]
    kept = {name: weight for name, weight in model.state_dict().items() if not name.startswith("classifier.")}
    assert kept and all(torch.equal(weight, old[name]) for name, weight in kept.items())


@pytest.mark.parametrize("label_names", [None, NAMES], ids=["to score", "to fine-tune"])
@pytest.mark.parametrize("kind", ["bert", "bilstm"])
def test_half_precision_checkpoint_loads_as_fp32(save, folder, kind, label_names):
    saved = save(kind).to(torch.bfloat16)
    saved.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    model = load_classifier(str(folder), ARGS, label_names)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, weight in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.float() if weight.is_floating_point() else weight)


def test_saved_student_needs_no_remote_code_where_the_package_is(save, folder, tokenizer, rows):
    student = save("bilstm")
    tokenizer.save_pretrained(folder)
    assert "auto_map" in json.loads((folder / "config.json").read_text())
    batch = load_tokenizer(str(folder), ARGS)(rows[0][:8], padding=True, return_tensors="pt")
    expected = student.eval()(**batch).logits
    by_package = load_classifier(str(folder), ARGS)
    by_transformers = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False)
    assert type(by_package) is type(by_transformers) is type(student)
    assert torch.equal(by_package.eval()(**batch).logits, expected)
    assert torch.equal(by_transformers.eval()(**batch).logits, expected)


# Built


def test_built_from_a_model_type_and_said_loudly(teacher_tokenizer, caplog):
    with caplog.at_level(logging.WARNING, "kd_trainer"):
        model = build_classifier("bert", f"{TINY},hidden_dropout_prob=0.25", teacher_tokenizer, NAMES, ARGS)
    config = model.config
    assert "FROM SCRATCH" in caplog.text
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("bert", 16, 1)
    assert (config.hidden_dropout_prob, config.problem_type) == (0.25, "single_label_classification")
    assert (config.vocab_size, config.pad_token_id) == (len(teacher_tokenizer), teacher_tokenizer.pad_token_id)
    assert named_labels(config) == NAMES and config.label2id == {name: i for i, name in enumerate(NAMES)}
    assert model(**teacher_tokenizer("股市", return_tensors="pt")).logits.shape == (1, 3)


@pytest.mark.parametrize("kind", ["bert", "bilstm"])
def test_built_from_a_folder_takes_its_shape_but_not_its_weights(save, folder, teacher_tokenizer, kind):
    saved = save(kind)
    (folder / "model.safetensors").unlink()
    model = build_classifier(str(folder), "hidden_size=32", teacher_tokenizer, ["a", "b"], ARGS)
    assert type(model) is type(saved) and model.config.hidden_size == 32 and named_labels(model.config) == ["a", "b"]


@pytest.mark.parametrize(
    "name, overrides",
    [
        ("bert", "hiden_size=16"), ("bert", "hidden_size=abc"), ("bert", "hidden_size"), ("bert", "hidden_size=7"),
        ("bert", f"{TINY},hidden_act=nothing"), ("kd_bilstm", "pooling=median"), ("kd_bilstm", "hidden_size=0"),
        ("vit", None), ("no-such-model", None), ("nobody/no-such-model", None), ("./missing", None),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(teacher_tokenizer, name, overrides):
    assert_refused(overrides or name, build_classifier, name, overrides, teacher_tokenizer, NAMES, ARGS)


# Lengths and labels


@pytest.mark.parametrize(
    "wanted, tokenizer_limit, positions, expected",
    [(8, 16, 32, 8), (64, 16, 32, 16), (64, 100, 32, 32), (64, None, 32, 32), (64, None, None, 64), (16, 16, 16, 16)],
)
def test_fit_length_takes_the_smallest_limit(teacher_tokenizer, wanted, tokenizer_limit, positions, expected, caplog):
    limit = {} if tokenizer_limit is None else {"model_max_length": tokenizer_limit}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=teacher_tokenizer.backend_tokenizer, pad_token="[PAD]", **limit
    )
    config = {} if positions is None else {"max_position_embeddings": positions}
    config = AutoConfig.for_model("kd_bilstm" if positions is None else "bert", **config)
    assert fit_length(wanted, tokenizer, config) == expected
    assert (str(expected) in caplog.text) == (expected < wanted)


@pytest.mark.parametrize(
    "model_type, overrides",
    [
        ("bert", f"{TINY},max_position_embeddings=12"),
        ("distilbert", "dim=16,hidden_dim=16,n_layers=1,n_heads=2,max_position_embeddings=12"),
        ("roberta", f"{TINY},max_position_embeddings=12"),
        ("gpt2", "n_embd=16,n_layer=1,n_head=2,n_positions=12"),
        ("kd_bilstm", "hidden_size=8,embedding_size=8"),
    ],
    ids=["bert", "distilbert", "roberta", "gpt2", "kd_bilstm"],
)
def test_a_text_of_the_fitted_length_runs(rows, teacher_tokenizer, model_type, overrides):
    teacher_tokenizer.model_max_length = 10**6
    model = build_classifier(model_type, overrides, teacher_tokenizer, NAMES, ARGS)
    length = fit_length(64, teacher_tokenizer, model.config)
    batch = teacher_tokenizer("股" * 99, truncation=True, max_length=length, return_tensors="pt")
    assert batch["input_ids"].shape == (1, length)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape == (1, 3) and logits.isfinite().all()


@pytest.mark.parametrize(
    "id2label, expected",
    [
        ({0: "neg", 1: "pos"}, ["neg", "pos"]),
        ({1: "pos", 0: "neg"}, ["neg", "pos"]),
        ({0: "LABEL_0", 1: "LABEL_1"}, None),
        ({0: "LABEL_0", 1: "pos"}, ["LABEL_0", "pos"]),
        ({i: f"name {i}" for i in reversed(range(12))}, [f"name {i}" for i in range(12)]),
    ],
)
def test_named_labels_stand_in_the_order_of_their_ids(id2label, expected, tmp_path):
    config = AutoConfig.for_model("bert", id2label=id2label)
    config.save_pretrained(tmp_path)
    assert named_labels(config) == named_labels(AutoConfig.from_pretrained(tmp_path)) == expected
