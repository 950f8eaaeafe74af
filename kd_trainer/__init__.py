"""Knowledge distillation of text classifiers with the Hugging Face Trainer."""

import importlib

# Where each public name lives. Loaded on first use: `--help` need not wait for all of it.
EXPORTS = {
    "AdversarialTrainer": "trainer",
    "AdversarialTrainingArguments": "arguments",
    "Attack": "adversarial",
    "BagConfig": "modeling_bag",
    "BagForSequenceClassification": "modeling_bag",
    "BiLSTMConfig": "modeling_bilstm",
    "BiLSTMForSequenceClassification": "modeling_bilstm",
    "CNNConfig": "modeling_cnn",
    "CNNForSequenceClassification": "modeling_cnn",
    "CascadeClassifier": "cascade",
    "ClassificationMetrics": "metrics",
    "ClassificationTrainer": "base_trainer",
    "DistillationCollator": "batches",
    "DistillationTrainer": "trainer",
    "DistillationTrainingArguments": "arguments",
    "InputError": "errors",
    "add_logits": "teacher",
    "align_labels": "teacher",
    "build_tokenizer": "tokenization",
    "cached_logits": "teacher",
    "compute_metrics": "metrics",
    "coverage_curve": "deferral",
    "cross_entropy_loss": "losses",
    "decoupled_distillation_loss": "losses",
    "kl_distillation_loss": "losses",
    "logit_mse_loss": "losses",
    "pick_threshold": "deferral",
    "predict_logits": "inference",
    "soft_cross_entropy_loss": "losses",
    "standardize_logits": "losses",
    "teacher_answers": "answers",
    "token_relation_loss": "losses",
    "tokenize": "batches",
}
__all__ = list(EXPORTS)
__version__ = "0.1.0"


def __getattr__(name):
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{EXPORTS[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *EXPORTS])
