"""Faults of kernels/ and csrc/ that the tests must find: what is wrong, where, the sound text, the planted one, tests.

The place is a file, or a folder that has the text once in one of its files; the tests are files in tests/kernels, which
run until one fails.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    what: str
    where: str
    text: str
    planted: str
    tests: str


FAULTS = [
    # dropout
    Fault(
        "the examples' ids are ignored",
        "kernels",
        'arguments | {"ids": compiled.address(ids)}',
        'arguments | {"ids": 0}',
        "test_dropout.py",
    ),
    Fault(
        "the seed's high word is lost",
        "kernels",
        '"seed": int(seed) & 0xFFFFFFFFFFFFFFFF, "stream"',
        '"seed": int(seed) & 0xFFFFFFFF, "stream"',
        "test_dropout.py",
    ),
    Fault(
        "kept values are scaled by 1 / (1 - p), not by the exact probability",
        "kernels",
        "return 65536 / kept if kept else 0.0",
        "return 1 / (1 - p) if kept else 0.0",
        "test_philox.py test_dropout.py",
    ),
    Fault(
        "a row after two empty sequences takes the first one's mask",
        "csrc/rowwise",
        "while (row_ >= dropout_.cu_seqlens[sequence_ + 1] && sequence_ + 1 < dropout_.batch) enter",
        "if (row_ >= dropout_.cu_seqlens[sequence_ + 1] && sequence_ + 1 < dropout_.batch) enter",
        "test_dropout.py test_norm.py",
    ),
    # rows
    Fault(
        "AVX2 forgets the last lane of a row's end",
        "csrc/rowwise",
        "store_part(row + begin, x, count);",
        "store_part(row + begin, x, kLanes == 8 ? count - 1 : count);",
        "test_gelu.py",
    ),
    Fault(
        "the gradient of the norm's inner bias is not dropped",
        "csrc/rowwise",
        "c.load(grad_x_bias) + dx)",
        "c.load(grad_x_bias) + dz)",
        "test_norm.py",
    ),
    Fault(
        "the sums of the gate's values start from whatever memory held",
        "csrc/rowwise",
        "std::memset(sums, 0, size_t(2 * p.width) * sizeof(float));",
        "std::memset(sums, 0, size_t(p.width) * sizeof(float));",
        "test_gelu.py",
    ),
    Fault(
        "the transposed rotation has the wrong sign in portable code",
        "csrc/rowwise",
        "const float sign = p.transposed ? -1.0f : 1.0f;",
        "const float sign = p.transposed && kLanes > 4 ? -1.0f : 1.0f;",
        "test_rotary.py",
    ),
    Fault(
        "a view whose last dimension is not dense is read as if it were",
        "kernels",
        'Rows: "if {0}.stride(-1) != 1: {0} = {0}.contiguous()",',
        'Rows: "pass",',
        "test_rotary.py",
    ),
    Fault(
        "a bias beside another gets no gradient",
        "kernels",
        "gradients[ctx.count :] = _split(bias_gradient, ctx.parts[ctx.count :])",
        "gradients[ctx.count] = _split(bias_gradient, ctx.parts[ctx.count :])[0]",
        "test_linear.py",
    ),
    Fault(
        "float64 is rounded under autocast",
        "kernels",
        "is_cast = x.is_floating_point() and x.dtype != torch.float64",
        "is_cast = x.is_floating_point()",
        "test_linear.py test_attention.py",
    ),
    Fault(
        "the padding row gets a gradient",
        "kernels",
        "if padding_idx >= 0:",
        "if padding_idx > 0:",
        "test_embedding.py",
    ),
    # bags
    Fault(
        "a text's last n-gram is left out",
        "kernels/bag",
        "there = torch.stack([left >= n for n in range(1, ngrams + 1)], 1)",
        "there = torch.stack([left >= n + (n > 2) for n in range(1, ngrams + 1)], 1)",
        "test_bag.py",
    ),
    Fault(
        "AVX2 forgets the last lane of a table's row",
        "csrc/bag",
        "if (left > 0) done(begin + v * kLanes, left < kLanes ? left : int64_t{kLanes}, sums[v]);",
        "if (left > 0) done(begin + v * kLanes, left < kLanes ? left - (kLanes == 8) : int64_t{kLanes}, sums[v]);",
        "test_bag.py",
    ),
    Fault(
        "AVX-512 divides a row's squares by whole registers",
        "csrc/bag",
        "horizontal_sum(squares) / float(p.width)",
        "horizontal_sum(squares) / float(kLanes == 16 ? (p.width + 15) / 16 * 16 : p.width)",
        "test_bag.py",
    ),
    Fault(
        "rows are sorted by their low bits alone",
        "csrc/bag",
        "for (int shift = 0; shift < bits; shift += kDigit) {",
        "for (int shift = 0; shift < std::min(bits, kDigit); shift += kDigit) {",
        "test_bag.py",
    ),
    # pooling
    Fault(
        "a NaN is no maximum",
        "kernels",
        "torch.where(has_nan > 0, first_nan, saved)",
        "saved",
        "test_pooling.py",
    ),
    Fault(
        "the reverse direction's last step is taken for the forward one's in the gradient",
        "kernels",
        "< (features // 2 if bidirectional else features)",
        "< (features - features // 2 + 1 if bidirectional else features)",
        "test_pooling.py",
    ),
    # attention
    Fault(
        "queries are placed wrongly where there are more of them than keys",
        "kernels",
        "shifted = (positions + length_k - length_q)",
        "shifted = (positions + (length_k - length_q).clamp(min=0))",
        "test_attention.py",
    ),
    Fault(
        "a window's right edge is off by one",
        "kernels/attention",
        "outside = keys > shifted + problem.window_right",
        "outside = keys >= shifted + problem.window_right",
        "test_attention.py",
    ),
    Fault(
        "AMX forgets dropout's scale in the softmax's gradient",
        "csrc/attention/cpu/backward_amx.h",
        "const float delta_scale = p.dropout_scale > 0 ? 1.0f / p.dropout_scale : 0.0f;",
        "const float delta_scale = p.dropout_scale > 0 ? 1.0f : 0.0f;",
        "test_attention_cpu.py",
    ),
    # LSTM
    Fault(
        "in a sequence of one token the reverse direction is fed its neighbour's state",
        "kernels",
        "begins = rows == (cu_seqlens[sequence] if d == 0 else cu_seqlens[sequence + 1] - 1)",
        "begins = rows == (cu_seqlens[sequence] if d == 0 else (cu_seqlens[sequence + 1] - 1).maximum("
        "cu_seqlens[sequence] + 1))",
        "test_lstm_cuda.py",
    ),
    Fault(
        "an empty sequence keeps the gradient of its final state",
        "kernels",
        "out.append(torch.where((ends > starts)[:, None], (first @ w_hh[d]).float(), dh_n[d]))",
        "out.append(torch.where((ends > starts)[:, None], (first @ w_hh[d]).float(), 0 * dh_n[d]))",
        "test_lstm.py",
    ),
    Fault(
        "a reset at the first token passes the gradient on to the initial state",
        "kernels",
        "torch.where(self.fresh[:, None], 0, grad) if d == 0 else grad",
        "grad",
        "test_lstm.py",
    ),
    Fault(
        "sequences come back in the order of the inverse permutation",
        "kernels",
        "        out[:, self.order] = state\n        return out",
        "        return state[:, self.order]",
        "test_lstm.py",
    ),
    Fault(
        "the cell's backward swaps the input and the forget gate",
        "kernels",
        "of_gates = (dc * g * i * (1 - i), dc * c * f * (1 - f),",
        "of_gates = (dc * c * f * (1 - f), dc * g * i * (1 - i),",
        "test_lstm_ops.py",
    ),
    Fault(
        "an id beyond int32 comes back as a row of the table",
        "kernels",
        "integers.clamp(ends.min, ends.max).to(torch.int32)",
        "integers.to(torch.int32)",
        "test_lstm_embeddings.py test_bag_classifier.py",
    ),
    Fault(
        "of equal maxima the reverse direction takes the last",
        "csrc/lstm/cpu",
        "(h >= before) | (h != h)",
        "(h > before) | (h != h)",
        "test_lstm_embeddings.py",
    ),
    Fault(
        "packed weights outlive a change in place",
        "kernels",
        "versions = [weight._version for weight in weights]",
        "versions = [0 for weight in weights]",
        "test_lstm_packed.py",
    ),
    Fault(
        "packed weights outlive a change past torch's count",
        "kernels",
        "return compiled.isa(), pieces, versions, compiled.native.sampled(pieces)",
        "return compiled.isa(), pieces, versions",
        "test_lstm_packed.py",
    ),
    Fault(
        "packed weights serve another instruction set",
        "kernels",
        "return compiled.isa(), pieces, versions, compiled.native.sampled(pieces)",
        "return pieces, versions, compiled.native.sampled(pieces)",
        "test_lstm_packed.py",
    ),
    Fault(
        "packed weights serve calls that record gradients",
        "kernels",
        "if transforms.wants_gradient((tensors, weights)):",
        "if transforms.wants_gradient(tensors):",
        "test_lstm_packed.py",
    ),
    Fault(
        "a query that fills a block up has a gradient",
        "csrc/attention/cpu/backward.h",
        "if (strip + i + 1 == rows) range[1] = {};",
        "if (strip + i + 1 > rows) range[1] = {};",
        "test_attention_cpu.py",
    ),
    Fault(
        "a packed linear layer loses the scale of a row of x",
        "csrc/linear/cpu",
        "units[row] = quantise_input(",
        "units[row] = 0 * quantise_input(",
        "test_packed_linear.py",
    ),
    Fault(
        "every piece of a block adds the first piece's residual",
        "csrc/linear/cpu",
        "(block.given[p.residual_of]) + block.offset * width);",
        "(block.given[p.residual_of]) + 0 * block.offset);",
        "test_packed_linear.py",
    ),
    Fault(
        "a packed linear layer reads all biases from the first",
        "csrc/linear/cpu",
        "for (int64_t i = 0; i < weights.count; to += weights.parts[i++].rows)",
        "for (int64_t i = 0; i < 1; to += weights.parts[i++].rows)",
        "test_packed_linear.py",
    ),
    Fault(
        "in int8 a sequence's last state is its last but one",
        "csrc/lstm/cpu",
        "if (sequence.length == step + 1) store(h_n",
        "if (sequence.length == step + 2) store(h_n",
        "test_lstm_int8.py",
    ),
    Fault(
        "NaN in x is a number in int8",
        "csrc",
        "horizontal_sum(sizes - sizes);",
        "0.0f;",
        "test_lstm_int8.py",
    ),
    Fault(
        "in int8 the scale of x is that of its largest value, not size",
        "csrc",
        "x &= Word(~kSign);",
        "x &= Word(-(x < kSign));",
        "test_lstm_int8.py",
    ),
    Fault(
        "CUDA: a lane runs into empty sequences",
        "csrc/lstm/cuda",
        "while (next_.sequence >= 0 && next_.length == 0) next_",
        "if (next_.sequence >= 0 && next_.length == 0) next_",
        "test_lstm_cuda.py",
    ),
    Fault(
        "CUDA: the last of several NaN is the maximum",
        "csrc/lstm/cuda",
        "h > before || (h != h && before == before)",
        "h > before || h != h",
        "test_lstm_cuda.py",
    ),
]
