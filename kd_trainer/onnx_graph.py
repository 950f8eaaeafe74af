"""A classifier as an ONNX graph, in fp32 or int8."""

import importlib.util
import logging
import warnings

import torch
from torch import nn

from .errors import InputError
from .loading import STUDENT_TYPES
from .modeling_student import combine_pairs

OPSET = 17


def check_packages():
    """
    Says before any work that the export cannot be done.

    Raises:
        `InputError`: Without onnx or onnxruntime.
    """
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the export needs {' and '.join(missing)}: pip install 'kd_trainer[export]'")


class BidirectionalLSTM(torch.autograd.Function):
    """
    One bidirectional `LSTM` node of ONNX over rows of their own lengths. torch.onnx writes a packed sequence as the
    same node with a dozen of others around it, for states and shapes that are ONNX's defaults.
    """

    @staticmethod
    def forward(ctx, states, lengths, weight, recurrent, bias):
        """Of the right shape and no more: only the graph is asked for."""
        width = recurrent.shape[2]
        every = states.new_zeros(states.shape[0], 2, states.shape[1], width)
        return every, states.new_zeros(2, states.shape[1], width)

    @staticmethod
    def symbolic(g, states, lengths, weight, recurrent, bias):
        """
        `(time, batch, width)` states to `(time, 2, batch, hidden_size)`, zero behind a row's length, and to the final
        state of each direction, `(2, batch, hidden_size)`.
        """
        hidden_size = recurrent.type().sizes()[2]
        return g.op(
            "LSTM", states, weight, recurrent, bias, lengths,
            hidden_size_i=hidden_size, direction_s="bidirectional", outputs=2,
        )  # fmt: skip


class BiLSTMEncoder(nn.Module):
    """
    What a BiLSTM's `encode` computes, each of its layers as one ONNX node.

    Args:
        student ([`BiLSTMForSequenceClassification`]): Its weights are copied.
    """

    def __init__(self, student):
        super().__init__()
        self.pool, self.takes_last = student.pool, student.config.pooling == "last"
        self.layers = nn.ModuleList()
        for layer in student.layers:
            lstms = (layer.forward_lstm, layer.backward_lstm)
            weight = torch.stack([self.reorder(lstm.weight_ih_l0) for lstm in lstms])
            recurrent = torch.stack([self.reorder(lstm.weight_hh_l0) for lstm in lstms])
            biases = [torch.cat([self.reorder(lstm.bias_ih_l0), self.reorder(lstm.bias_hh_l0)]) for lstm in lstms]
            self.layers.append(nn.ParameterList([weight, recurrent, torch.stack(biases)]))

    @staticmethod
    def reorder(parameter):
        """torch's gates are input, forget, cell, output; those of ONNX input, output, forget, cell."""
        i, f, c, o = parameter.detach().chunk(4)
        return torch.cat([i, o, f, c])

    def forward(self, states, lengths):
        """As `encode` of [`StudentPreTrainedModel`]."""
        states = states.transpose(0, 1)
        for weights in self.layers:
            found, final = BidirectionalLSTM.apply(states, lengths.to(torch.int32), *weights)
            states = found.transpose(1, 2).flatten(2)
        if self.takes_last:
            return final.transpose(0, 1).flatten(1)
        return self.pool(states.transpose(0, 1), lengths)


class CNNEncoder(nn.Module):
    """
    What a CNN's `encode` computes, each width of filters as a product of matrices, which int8 makes faster; it makes
    ONNX Runtime's convolutions slower.

    Args:
        student ([`CNNForSequenceClassification`]): Its weights are copied.
    """

    def __init__(self, student):
        super().__init__()
        kernels = [convolution.weight.detach() for convolution in student.convolutions]
        self.sizes = [kernel.shape[2] for kernel in kernels]
        self.weights = nn.ParameterList([kernel.permute(2, 1, 0).flatten(0, 1) for kernel in kernels])
        self.biases = nn.ParameterList([convolution.bias.detach() for convolution in student.convolutions])

    def forward(self, states, lengths):
        """As `encode` of [`StudentPreTrainedModel`]."""
        pooled = []
        for size, weight, bias in zip(self.sizes, self.weights, self.biases, strict=True):
            padded = nn.functional.pad(states, (0, 0, size - 1, size - 1))
            windows = states.shape[1] + size - 1
            found = torch.cat([padded[:, start : start + windows] for start in range(size)], dim=2) @ weight
            is_outside = torch.arange(windows) >= (lengths + size - 1)[:, None]
            # The bias is the same in every window.
            pooled.append(found.masked_fill(is_outside[..., None], torch.finfo(found.dtype).min).amax(dim=1) + bias)
        return torch.cat(pooled, dim=1).relu()


ENCODERS = {"kd_bilstm": BiLSTMEncoder, "kd_cnn": CNNEncoder}


class StudentGraph(nn.Module):
    """
    What a student's `forward` computes for texts that are padded on the right, in operations that ONNX knows for any
    batch and any length. Of a pair the second text follows the first.

    Args:
        student ([`StudentPreTrainedModel`]): In evaluation mode.
    """

    def __init__(self, student):
        super().__init__()
        self.student = student
        kind = student.config.model_type
        self.encode = ENCODERS[kind](student) if kind in ENCODERS else student.encode

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """
        Args:
            input_ids, attention_mask, token_type_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): At
                least one token long; the last for pairs alone.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)`.
        """
        student = self.student
        lengths = attention_mask.sum(dim=1)
        if token_type_ids is not None:
            seconds = (attention_mask * token_type_ids).sum(dim=1)
            firsts = lengths - seconds
            lengths = torch.cat([firsts, seconds])
            positions = torch.arange(input_ids.shape[1])
            # What is beyond the end is cut off or masked below.
            moved = (positions + firsts[:, None]).clamp(max=input_ids.shape[1] - 1)
            input_ids = torch.cat([input_ids, input_ids.gather(1, moved)])[:, : lengths.clamp(min=1).max()]
        is_token = torch.arange(input_ids.shape[1]) < lengths[:, None]
        # An empty text reads one padding position: what stands there must not matter.
        states = student.embeddings(input_ids).masked_fill(~is_token[..., None], 0)
        vectors = self.encode(states, lengths.clamp(min=1))
        logits = student.classifier(vectors if token_type_ids is None else combine_pairs(vectors))
        return logits if student.ngrams is None else logits + student.ngrams(input_ids, lengths)


class TransformerGraph(nn.Module):
    """A classifier of `transformers` by the names of its inputs, to its logits alone."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True).logits


def input_names(model, tokenizer):
    """Names of a graph's inputs, `tuple[str]`: what the tokenizer gives and the model reads."""
    if model.config.model_type in STUDENT_TYPES:
        pairs = model.config.to_dict().get("text_pairs", False)
        return ("input_ids", "attention_mask", *(["token_type_ids"] if pairs else []))
    return tuple(
        name for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenizer.model_input_names
    )


def write_graph(model, names, path):
    """
    Writes a classifier as an ONNX graph of any batch and length.

    Args:
        model (`PreTrainedModel`): On the CPU, in fp32 and evaluation mode.
        names (`tuple[str]`): Of its inputs, see [`input_names`].
        path (`Path`): Of the file.

    Raises:
        `InputError`: For a model with operations that the exporter does not know.
    """
    is_student = model.config.model_type in STUDENT_TYPES
    graph = StudentGraph(model) if is_student else TransformerGraph(model, names)
    examples = {
        "input_ids": torch.tensor([[1, 2, 2, 1], [2, 1, 1, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "token_type_ids": torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0]]),
    }
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {"logits": {0: "batch"}}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Of an exporter that is chosen on purpose, and of what tracing fixes, which the parity check would show.
            warnings.simplefilter("ignore")
            # Not dynamo: it freezes shapes of the students, and asks for one package more.
            torch.onnx.export(
                graph.eval(), tuple(examples[name] for name in names), str(path), input_names=list(names),
                output_names=["logits"], dynamic_axes=axes, opset_version=OPSET, dynamo=False,
            )  # fmt: skip
    except Exception as error:  # whatever an operation that ONNX lacks makes the exporter raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{type(model).__name__} cannot be written as ONNX ({reason}): leave the export out"
        ) from error


def quantize(source, target, per_channel):
    """
    Writes a graph with the weights of its matrices, LSTMs and embeddings in 8 bits, its activations in 8 bits by their
    range in each call.

    Args:
        source (`Path`): The fp32 graph.
        target (`Path`): Of the file.
        per_channel (`bool`): Whether every column of a matrix has a scale of its own.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # advice to preprocess, through the root logger
    try:
        # Weights of 7 bits: where a processor has no VNNI, sums of products of 8 bits overflow the 16 that they have,
        # and what is checked here would answer otherwise there.
        quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=per_channel, reduce_range=True)
    finally:
        logging.disable(logging.NOTSET)
