"""Bugs to plant in the softmax focal loss and the options of the sigmoid one, both in CUDA C++."""

# ruff: noqa: E501 (a table)
from __future__ import annotations

SIGMOID, SOFTMAX = "cuda/focal.cu", "cuda/softmax_focal.cu"

# kernel: (name, file, what stands there, what is planted, why it is harmless if it is)
PLANTED: dict[str, list[tuple[str, ...]]] = {
    "sigmoid_focal": [
        ("options: neighbours share their factors", SIGMOID, "++in_period;", ""),
        ("options: a row goes on", SIGMOID, "in_row = 0, ++row;", "in_row = 0;"),
        ("options: periods begin with threads", SIGMOID, "i % a.row, i % a.period}", "i % a.row, 0}"),
        ("options: positives' factor for the negatives", SIGMOID, "of[length], of[2 * length]", "of[0], of[2 * length]"),
        ("options: length of the vectors", SIGMOID, "a.period + kFocalBlock", "a.period"),
        ("options: rows weigh positives only", SIGMOID, "weights->negative *= weight;", ""),
        ("options: mask is dropped", SIGMOID, "if (a.mask && !a.mask[i]) return false;", ""),
        ("options: mask of a row's first element", SIGMOID, "!a.mask[i]", "!a.mask[at.row * a.row]"),
        ("options: ignored targets cost", SIGMOID, "return !(*target == a.ignored);", "return true;"),
        ("options: ignored indices cost", SIGMOID, "return !(float(index) == a.ignored);", "return true;"),
        ("options: neighbouring class", SIGMOID, "index == at.in_row", "index == at.in_row + 1"),
        ("options: indices are read as targets", SIGMOID, "!Options || !a.indices", "true"),
        ("options: smoothing keeps the target whole", SIGMOID, "target * (1.f - a.smoothing)", "target"),
        ("options: NaN where nothing counts", SIGMOID, "counts ? term.loss : 0.f", "counts ? term.loss : term.loss * 0.f"),
        ("options: gradients add up", SIGMOID, "nil.gradient - one.gradient", "nil.gradient + one.gradient"),
        ("options: they are not looked at", SIGMOID, "!a.separate;", "true;"),
    ],
    "softmax_focal": [
        ("place of 32 bits", SOFTMAX, "const int64_t base =", "const int base ="),
        ("position of 32 bits", SOFTMAX, "for (int64_t position = (int64_t(blockIdx.x)", "for (int position = (int64_t(blockIdx.x)", "a position past two to the 31 needs as many classes of memory each"),
        ("samples are as long as their positions", SOFTMAX, "position / a.inner * a.classes * a.inner", "position / a.inner * a.inner"),
        ("stride of the classes", SOFTMAX, "to_float(x[c * a.inner])", "to_float(x[c])"),
        ("stride of the gradient's classes", SOFTMAX, "      grad[c * a.inner] = from_float<T>(upstream", "      grad[c] = from_float<T>(upstream"),
        ("positions past the last", SOFTMAX, "position < positions;", "position <= positions;"),
        ("stride of the teams", SOFTMAX, "int64_t(gridDim.x) * (kThreads / Team)", "int64_t(gridDim.x) * kThreads"),
        ("ignored positions cost", SOFTMAX, "if (a.target && target == a.ignored)", "if (false)"),
        ("no gradient is written for ignored positions", SOFTMAX, "for (int64_t c = member; grad && c < a.classes; c += Team)", "for (int64_t c = member; false && c < a.classes; c += Team)"),
        ("every member writes the loss", SOFTMAX, "if (a.loss && member == 0) a.loss[position] = known", "if (a.loss) a.loss[position] = known"),
        ("loss that was not asked for", SOFTMAX, "if (a.loss && member == 0) a.loss[position] = known", "if (member == 0) a.loss[position] = known"),
        ("class that is none is read", SOFTMAX, "(target >= 0 && target < a.classes)", "target >= 0"),
        ("class below the first is read", SOFTMAX, "(target >= 0 && target < a.classes)", "target < a.classes"),
        ("margin of every class", SOFTMAX, "c == target ? logit - margin : logit", "logit - margin"),
        ("margin is added", SOFTMAX, "logit - margin : logit", "logit + margin : logit"),
        ("offset is dropped", SOFTMAX, "if (a.offset) logit += a.offset[c];", ""),
        ("scale is dropped from the gradient", SOFTMAX, "upstream = a.scale *", "upstream = 1.f *"),
        ("upstream of the first position", SOFTMAX, "a.upstream[position]", "a.upstream[0]"),
        ("factor is dropped", SOFTMAX, ": a.factor)", ": 1.f)"),
        ("smoothing keeps the target whole", SOFTMAX, "(1.f - a.smoothing) * t", "t"),
        ("smoothing is not among all classes", SOFTMAX, "a.smoothing / float(a.classes)", "a.smoothing"),
        ("alpha is dropped", SOFTMAX, "a.alpha ? weight * a.alpha[c] : weight", "weight"),
        ("sums are not rescaled", SOFTMAX, "(others + 1.f) * __expf(maximum - logit)", "others + 1.f"),
        ("the largest one is lost", SOFTMAX, "(others + 1.f) * __expf(maximum - logit)", "others * __expf(maximum - logit)"),
        ("members' sums are not rescaled", SOFTMAX, "(b.others + 1.f) * __expf(b.maximum - maximum)", "b.others + 1.f"),
        ("half of a team", SOFTMAX, "offset = Team / 2; offset; offset /= 2)\n      all.add", "offset = Team / 4; offset; offset /= 2)\n      all.add"),
        ("half of a team's losses", SOFTMAX, "offset = Team / 2; offset; offset /= 2) {\n        loss", "offset = Team / 4; offset; offset /= 2) {\n        loss"),
        ("infinity less infinity", SOFTMAX, "else if (!(logit == -INFINITY))", "else"),
        ("what is missing to 1 cancels", SOFTMAX, "distance == 0.f ? at.share : 1.f - p", "1.f - p"),
        ("slope cancels", SOFTMAX, "slope * term.miss - term.p * (slopes - slope)", "slope - term.p * slopes"),
        ("power of 1", SOFTMAX, "if (gamma == 1.f) return miss;", "if (gamma == 1.5f) return miss;"),
        ("gamma is dropped from the slope", SOFTMAX, "gamma * power * p * ratio - power", "power * p * ratio - power"),
        ("probabilities of another dtype", SOFTMAX, "if (dtype == Dtype::kFloat16) return", "if (dtype == Dtype::kFloat32) return"),
    ],
}  # fmt: skip
