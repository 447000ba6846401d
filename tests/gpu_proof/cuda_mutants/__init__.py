"""Bugs to plant in the CUDA kernels: each replaces text that stands once in one source."""

# ruff: noqa: E501 (a table)
from __future__ import annotations

from typing import NamedTuple

from . import focal, margin, mmd, panel


class Mutant(NamedTuple):
    """A bug; ``harmless`` says why the checks cannot see it, where they cannot."""

    kernel: str
    name: str
    file: str
    old: str
    new: str
    harmless: str = ""

    @property
    def half(self) -> bool:
        """Whether only half precision shows it."""
        return self.name in _SHOWN_BY_HALF


FOCAL, PACK, BITS = "cuda/focal.cu", "cuda/pack.cu", "cuda/bits.cuh"
CHANNELS, POOL, QUANTIZE = "cuda/channels.cu", "cuda/max_pool.cu", "cuda/quantize.cu"
COMMON = "cuda/common.cuh"

_LOOP = "int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride"
_WARP_LOOP = "int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i - threadIdx.x % 32 < n; i += stride"

_SHOWN_BY_HALF = {
    *("bounds are not rounded", "bits of what is not rounded"),
    *mmd.SHOWN_BY_HALF,
    *panel.SHOWN_BY_HALF,
}

# kernel: (name, file, what stands there, what is planted, why it is harmless if it is)
_PLANTED: dict[str, list[tuple[str, ...]]] = {
    "sigmoid_focal": [
        ("tail is lost", FOCAL, "i < n; i += stride) {\n    const int count", "i + kLanes <= n; i += stride) {\n    const int count"),
        ("a wide load at the tail", FOCAL, "wide && count == kLanes", "wide"),
        ("a wide load where none begins", FOCAL, "wide && count == kLanes", "count == kLanes"),
        ("targets are not asked for alignment", FOCAL, "aligned_to_wide(a.t) && ", ""),
        ("offset of 32 bits", FOCAL, "for (int64_t i = (int64_t(blockIdx.x)", "for (int i = (int64_t(blockIdx.x)"),
        ("offset of 32 bits in the index of a block", FOCAL, "(int64_t(blockIdx.x) * kThreads + threadIdx.x) * kLanes", "(blockIdx.x * kThreads + threadIdx.x) * kLanes", "the product of 32 unsigned bits holds every first element of a grid"),
        ("stride of a block too short", FOCAL, "int64_t(gridDim.x) * kThreads * kLanes", "int64_t(gridDim.x - 1) * kThreads * kLanes + kLanes"),
        ("sign of the logit", FOCAL, "exp_negative(-abs(logit))", "exp_negative(abs(logit))"),
        ("factor is dropped", FOCAL, ": a.factor)", ": 1.f)"),
        ("upstream of another lane", FOCAL, "to_float(vu.lane[j])", "to_float(vu.lane[0])"),
        ("loss and gradient change places", FOCAL, "loss[i + j] = vl.lane[j]", "loss[i + j] = vg.lane[j]"),
        ("loss is written where it was not asked for", FOCAL, "if (loss) *reinterpret_cast", "*reinterpret_cast"),
        ("another power", FOCAL, "a.gamma == 1.f", "a.gamma == 1.5f"),
        ("weights change places", FOCAL, "{a.positive, a.negative, 1.f}", "{a.negative, a.positive, 1.f}"),
        ("gamma is dropped from the slope", "common/focal.h", "slope = gamma * power *", "slope = power *"),
        ("neighbouring blocks overlap", FOCAL, "(int64_t(blockIdx.x) * kThreads + threadIdx.x) * kLanes", "(int64_t(blockIdx.x) * (kThreads - 1) + threadIdx.x) * kLanes"),
    ],
    "pack": [
        ("launched on the default stream", COMMON, "config.stream = static_cast<cudaStream_t>(stream);", ""),
        ("bound of the vote", PACK, "i < n && bit_of<Kind>", "bit_of<Kind>"),
        ("warps lose their last lanes", PACK, "i - threadIdx.x % 32 < n; i += stride) {\n    const float v", "i < n; i += stride) {\n    const float v"),
        ("read past the end", PACK, "i < n ? to_float(x[i]) : 0.f", "to_float(x[i])"),
        ("write past the end", PACK, "if (y && i < n) y[i]", "if (y) y[i]"),
        ("every lane writes the word", PACK, "    if (threadIdx.x % 32 == 0) {\n      store_word", "    {\n      store_word"),
        ("a word past the plane", BITS, "bytes >= 4 && reinterpret", "reinterpret"),
        ("a word where none begins", BITS, "bytes >= 4 && reinterpret_cast<uintptr_t>(to) % 4 == 0", "bytes >= 4"),
        ("bytes in the other order", BITS, "bits >> (8 * b)", "bits >> (24 - 8 * b)"),
        ("second plane begins a byte early", PACK, "store_word(mask + (n + 7) / 8", "store_word(mask + n / 8"),
        ("bit of what is not above", BITS, "x > a && x < b : !(x <= a)", "x > a && x < b : x > a"),
        ("bit at the upper bound", BITS, "bounded ? x > a && x < b : !", "bounded ? x > a && x <= b : !"),
        ("bounds are not rounded", PACK, "const bool round = Kind == Packed::kClamp ||", "const bool round ="),
        ("infinite bound is one", BITS, "(x > a || a == -INFINITY)", "x > a"),
        ("NaN is clamped", COMMON, "return a > b ? a : b; }", "return b > a ? b : a; }"),
        ("slope of the leaky part", PACK, "x > 0.f ? x : x * a", "x > 0.f ? x : x * b"),
        ("offset of 32 bits", PACK, f"for ({_WARP_LOOP}) {{\n    const float", f"for ({_WARP_LOOP.replace('int64_t i', 'int i')}) {{\n    const float"),
        ("booleans: offset of 32 bits", PACK, f"for ({_WARP_LOOP}) {{\n    const uint32_t", f"for ({_WARP_LOOP.replace('int64_t i', 'int i')}) {{\n    const uint32_t"),
        ("booleans: bound of the vote", PACK, "i < n && x[i]", "x[i]"),
        ("place of the word in 32 bits", BITS, "to = mask + first / 8", "to = mask + int(first) / 8"),
    ],
    "masked": [
        ("bound of the loop", PACK, f"for ({_LOOP})", f"for ({_LOOP.replace('i < n', 'i <= n')})"),
        ("last element is lost", PACK, f"for ({_LOOP})", f"for ({_LOOP.replace('i < n', 'i + 1 < n')})"),
        ("offset of 32 bits", PACK, f"for ({_LOOP})", f"for ({_LOOP.replace('int64_t i', 'int i')})"),
        ("a thread takes one element", PACK, f"for ({_LOOP})", f"for ({_LOOP.replace('i += stride', 'i += n')})"),
        ("second plane begins late", PACK, "bit_at(mask + (n + 7) / 8, i)", "bit_at(mask + n / 8 + 1, i)"),
        ("second plane is the first", PACK, "bit_at(mask + (n + 7) / 8, i)", "bit_at(mask, i)"),
        ("mask is dropped", PACK, "bit_at(mask, i), negative", "true, negative"),
        ("bits in the other order", BITS, ">> (i % 8) & 1", ">> (7 - i % 8) & 1"),
        ("bit of a byte's neighbour", BITS, "mask[i / 8] >>", "mask[(i + 1) / 8] >>"),
        ("yes and no change places", BITS, "g * (bit ? yes : no)", "g * (bit ? no : yes)"),
        ("sign of the negative part", BITS, "negative ? -1.f : 0.f", "negative ? 1.f : 0.f"),
        ("infinity where no gradient passes", BITS, "case Masked::kPass:\n      return bit ? g : 0.f", "case Masked::kPass:\n      return g * float(bit)"),
        ("factor is dropped", BITS, "bit ? g * yes : 0.f", "bit ? g : 0.f"),
        ("index of a bit in 32 bits", BITS, "bit_at(const uint8_t* mask, int64_t i)", "bit_at(const uint8_t* mask, int i)"),
    ],
    "channel_sum": [
        ("no barrier before the sum", CHANNELS, "partial[threadIdx.x] = sum;\n  __syncthreads();", "partial[threadIdx.x] = sum;"),
        ("no barrier in the sum", CHANNELS, "partial[threadIdx.x] += partial[threadIdx.x + half * width];\n    __syncthreads();", "partial[threadIdx.x] += partial[threadIdx.x + half * width];"),
        ("barrier for half of the block", CHANNELS, "if (row < half) partial[threadIdx.x] += partial[threadIdx.x + half * width];\n    __syncthreads();", "if (row < half) {\n      partial[threadIdx.x] += partial[threadIdx.x + half * width];\n      __syncthreads();\n    }"),
        ("sum is not compensated", CHANNELS, "lost = isfinite(next) ? (next - sum) - more : 0.f", "lost = 0.f"),
        ("compensation spoils infinities", CHANNELS, "lost = isfinite(next) ? (next - sum) - more : 0.f", "lost = (next - sum) - more"),
        ("sign of the compensation", CHANNELS, "more = d - lost", "more = d + lost"),
        ("stride of a row", CHANNELS, "partial[threadIdx.x] += partial[threadIdx.x + half * width]", "partial[threadIdx.x] += partial[threadIdx.x + half]"),
        ("first half is lost", CHANNELS, "half = rows / 2; half; half /= 2) {\n    if (row < half) partial[threadIdx.x]", "half = rows / 4; half; half /= 2) {\n    if (row < half) partial[threadIdx.x]"),
        ("last step is lost", CHANNELS, "half = rows / 2; half; half /= 2) {\n    if (row < half) partial[threadIdx.x]", "half = rows / 2; half > 1; half /= 2) {\n    if (row < half) partial[threadIdx.x]"),
        ("bound of the channels", CHANNELS, "if (c < a.channels) {\n    const float no", "{\n    const float no"),
        ("bound of the channels when they are written", CHANNELS, "a.sums && row == 0 && c < a.channels", "a.sums && row == 0"),
        ("every row writes", CHANNELS, "a.sums && row == 0 && c < a.channels", "a.sums && c < a.channels"),
        ("rows of the grid overlap", CHANNELS, "r += rows) {\n      const int64_t i = (r / a.inner * a.channels + c) * a.inner + r % a.inner;\n      const float d = gradient", "r += rows - 1) {\n      const int64_t i = (r / a.inner * a.channels + c) * a.inner + r % a.inner;\n      const float d = gradient"),
        ("offset of 32 bits", CHANNELS, "const int64_t i = (r / a.inner * a.channels + c) * a.inner + r % a.inner;\n      const float d = gradient", "const int i = (r / a.inner * a.channels + c) * a.inner + r % a.inner;\n      const float d = gradient"),
        ("layout", CHANNELS, "(r / a.inner * a.channels + c) * a.inner + r % a.inner;\n      const float d = gradient", "(r % a.inner * a.channels + c) * a.inner + r / a.inner;\n      const float d = gradient"),
        ("factors are ignored", CHANNELS, "a.factors ? a.factors[c] : a.no", "a.no"),
        ("a mask that is not there", CHANNELS, "!a.mask || bit_at(a.mask, i), false", "bit_at(a.mask, i), false"),
        ("no sums without gradients", CHANNELS, "if (dx) dx[i] = from_float<T>(d);", "dx[i] = from_float<T>(d);"),
    ],
    "channel_affine": [
        ("warps lose their last lanes", CHANNELS, f"for ({_WARP_LOOP})", f"for ({_LOOP})"),
        ("bound of the elements", CHANNELS, "    if (i < n) {\n      const int64_t c", "    {\n      const int64_t c"),
        ("bound of the vote", CHANNELS, "i < n && bit_of<Packed::kRelu>(v", "bit_of<Packed::kRelu>(v"),
        ("channel of another layout", CHANNELS, "i / a.inner % a.channels", "i % a.channels"),
        ("shift is dropped", CHANNELS, "* a.scale[c] + a.shift[c]", "* a.scale[c]"),
        ("sign of the shift", CHANNELS, "* a.scale[c] + a.shift[c]", "* a.scale[c] - a.shift[c]"),
        ("other is dropped", CHANNELS, "if (other) v += to_float(other[i]);", ""),
        ("upper bound is dropped", CHANNELS, "min(a.upper, max(a.lower, v))", "max(a.lower, v)"),
        ("always clamped", CHANNELS, "a.mask ? min(a.upper, max(a.lower, v)) : v", "min(a.upper, max(a.lower, v))"),
        ("NaN is clamped", CHANNELS, "max(a.lower, v)", "fmaxf(a.lower, v)", "the next line writes NaN where v is one"),
        ("NaN is not restored", CHANNELS, "if (a.mask && v != v) y[i] = from_float<T>(v);", "", "max and min let NaN through already"),
        ("bits of what is not rounded", CHANNELS, "if (a.mask) v = to_float(from_float<T>(v));", "", "a value within a rounding of a bound may have either bit for the checks, whose truth is float64"),
        ("vote only where there is a mask", CHANNELS, "if (!a.mask) continue;", ""),
        ("every lane writes the word", CHANNELS, "if (threadIdx.x % 32 == 0) store_word(a.mask", "store_word(a.mask"),
        ("offset of 32 bits", CHANNELS, f"for ({_WARP_LOOP})", f"for ({_WARP_LOOP.replace('int64_t i', 'int i')})"),
        ("write before the read of other", CHANNELS, "    if (i < n) {\n      const int64_t c", "    if (i < n) {\n      y[i] = from_float<T>(0.f);\n      const int64_t c"),
        ("scale of the next channel", CHANNELS, "to_float(x[i]) * a.scale[c]", "to_float(x[i]) * a.scale[(c + 1) % a.channels]"),
    ],
    "channel_affine_backward": [
        ("no barrier before the sum", CHANNELS, "partial[k][threadIdx.x] = sums[k];\n  __syncthreads();", "partial[k][threadIdx.x] = sums[k];"),
        ("no barrier in the sum", CHANNELS, "partial[k][threadIdx.x + half * width];\n    __syncthreads();", "partial[k][threadIdx.x + half * width];"),
        ("one sum of two", CHANNELS, "for (int k = 0; k < 2; ++k) a.sums[k", "for (int k = 0; k < 1; ++k) a.sums[k"),
        ("sums change places", CHANNELS, "a.sums[k * a.channels + c] = partial[k][lane]", "a.sums[(1 - k) * a.channels + c] = partial[k][lane]"),
        ("bound of the channels", CHANNELS, "if (c < a.channels) {\n    const float scale", "{\n    const float scale"),
        ("bound of the channels when they are written", CHANNELS, "if (row == 0 && c < a.channels)\n", "if (row == 0)\n"),
        ("mean is dropped", CHANNELS, "d * (to_float(x[i]) - centre)", "d * to_float(x[i])"),
        ("infinity where no gradient passes", CHANNELS, "bit && x ? d *", "x ? d *"),
        ("x that is not there", CHANNELS, "bit && x ? d *", "bit ? d *"),
        ("scale is dropped", CHANNELS, "from_float<T>(d * scale)", "from_float<T>(d)"),
        ("other's gradient is scaled", CHANNELS, "dother[i] = from_float<T>(d)", "dother[i] = from_float<T>(d * scale)"),
        ("mask is dropped", CHANNELS, "const bool bit = !a.mask || bit_at(a.mask, i)", "const bool bit = true"),
        ("bit of 32 bits", CHANNELS, "const bool bit = !a.mask || bit_at(a.mask, i)", "const bool bit = !a.mask || bit_at(a.mask, int(i))"),
        ("sum is not compensated", CHANNELS, "lost[k] = isfinite(next) ? (next - sums[k]) - more : 0.f", "lost[k] = 0.f"),
        ("compensation spoils infinities", CHANNELS, "lost[k] = isfinite(next) ? (next - sums[k]) - more : 0.f", "lost[k] = (next - sums[k]) - more"),
        ("offset of 32 bits", CHANNELS, "const int64_t i = (r / a.inner * a.channels + c) * a.inner + r % a.inner;\n      const bool bit", "const int i = (r / a.inner * a.channels + c) * a.inner + r % a.inner;\n      const bool bit"),
        ("shared memory of one sum", CHANNELS, "partial[2][kThreads]", "partial[1][kThreads]"),
        ("last step is lost", CHANNELS, "half = rows / 2; half; half /= 2) {\n    if (row < half)\n", "half = rows / 2; half > 1; half /= 2) {\n    if (row < half)\n"),
    ],
    "max_pool": [
        ("first of a window that padding hides", POOL, "(-start + dilation - 1) / dilation : 0", "-start / dilation : 0"),
        ("padding is read", POOL, "*first = start < 0 ? (-start + dilation - 1) / dilation : 0", "*first = 0"),
        ("last of a window", POOL, "(size - start + dilation - 1) / dilation", "(size - start) / dilation"),
        ("window past the end", POOL, "*last = fit < kernel ? fit : kernel", "*last = kernel"),
        ("ties go to the last", POOL, "v > best || v != v", "v >= best || v != v"),
        ("NaN is lost", POOL, "if (v > best || v != v)", "if (v > best)"),
        ("code of a window of -inf", POOL, "unsigned code = unsigned((d0 * a.kernel.h + h0) * a.kernel.w + w0)", "unsigned code = 0"),
        ("codes by another kernel size", POOL, "unsigned((i * a.kernel.h + j) * a.kernel.w + k)", "unsigned((i * a.kernel.h + j) * a.kernel.h + k)"),
        ("codes overlap", POOL, "packed |= code << (e * a.bits)", "packed |= code << e"),
        ("codes past a group", POOL, "if (index >= codes) break;", ""),
        ("dilation is dropped", POOL, "w + k * a.dilation.w", "w + k"),
        ("padding is dropped", POOL, "w = o.w * a.stride.w - a.padding.w", "w = o.w * a.stride.w"),
        ("channels come first", POOL, "if (a.channels_last) return (((n", "if (false) return (((n"),
        ("offset of 32 bits", POOL, "__device__ __forceinline__ int64_t place(", "__device__ __forceinline__ int place("),
        ("stride of sizes changes places", POOL, "h = o.h * a.stride.h", "h = o.h * a.stride.w"),
        ("bound of the bytes", POOL, "b < bytes; b += stride", "b <= bytes; b += stride"),
        ("a start of zero", POOL, "float best = -INFINITY;", "float best = 0.f;"),
    ],
    "max_pool_backward": [
        ("first window", POOL, "(i + padding - reach + stride - 1) / stride", "(i + padding - reach) / stride"),
        ("first window is too late", POOL, "i + padding <= reach ? 0", "i + padding <= reach + 1 ? 0"),
        ("last window", POOL, "(i + padding) / stride + 1", "(i + padding) / stride"),
        ("last window past the end", POOL, "*last = end < out ? end : out", "*last = end"),
        ("reach without dilation", POOL, "reach = (kernel - 1) * dilation", "reach = kernel - 1"),
        ("between a dilated window's elements", POOL, "if (kd % a.dilation.d || kh % a.dilation.h || kw % a.dilation.w) continue;", ""),
        ("number of an element", POOL, "kh / a.dilation.h) * a.kernel.w + kw / a.dilation.w", "kh / a.dilation.h) * a.kernel.w + kw"),
        ("bits of a code", POOL, "((1 << a.bits) - 1);", "(1 << a.bits);"),
        ("group of a code", POOL, "o / codes * per_group + bit / 8", "o / codes + bit / 8"),
        ("place of a code in its group", POOL, "bit = o % codes * a.bits", "bit = o * a.bits"),
        ("only the last window", POOL, "sum += to_float(g[o])", "sum = to_float(g[o])"),
        ("padding is dropped", POOL, "kw = w + a.padding.w - ow", "kw = w - ow"),
        ("channels come first", POOL, "if (a.channels_last) c = rest % a.channels, rest /= a.channels;", ""),
        ("offset of 32 bits", POOL, "const int64_t o = place(a, a.out, rest", "const int o = place(a, a.out, rest", "an output past two to the 31 needs four times as many inputs"),
        ("input of 32 bits", POOL, "i < inputs; i += stride) {\n    int64_t rest = i", "i < inputs; i += stride) {\n    int64_t rest = int(i)"),
        ("bound of the inputs", POOL, "i < inputs; i += stride", "i < inputs - 1; i += stride"),
        ("sizes change places", POOL, "h = rest / a.size.w % a.size.h", "h = rest / a.size.h % a.size.w"),
    ],
    "quantize": [
        ("read past the end", QUANTIZE, "x[first + (i < count ? i : 0)]", "x[first + i]"),
        ("half of a warp's sum", COMMON, "x += __shfl_xor_sync(~0u, x, offset)", "x += __shfl_xor_sync(0xffffu, x, offset)"),
        ("step of a warp's maximum", COMMON, "for (int offset = 16; offset; offset >>= 1) x = fmaxf", "for (int offset = 16; offset > 1; offset >>= 1) x = fmaxf"),
        ("sign of the least", QUANTIZE, "even_levels(-warp_max(-lowest)", "even_levels(warp_max(lowest)"),
        ("last level", QUANTIZE, "Bits == 8 ? 255.f : 15.f", "Bits == 8 ? 255.f : 16.f", "no position is further than a rounding from the last level"),
        ("bound of the codes", QUANTIZE, "if (lane * kEach + b * kInByte + e < count) byte |=", "byte |="),
        ("bytes past the end", QUANTIZE, "if (place * kInByte < count) a.codes", "a.codes"),
        ("codes in the other order", QUANTIZE, "<< (e * Bits)", "<< ((kInByte - 1 - e) * Bits)"),
        ("threshold in the wrong place", QUANTIZE, "(v[e] > limits.middle) +", "(v[e] > limits.low) +"),
        ("counts past the end", QUANTIZE, "c == codes[e] && lane * kEach + e < count", "c == codes[e]"),
        ("mean of a short group", QUANTIZE, "1.f / float(count)", "1.f / float(kGroup)"),
        ("not finite, unnoticed", QUANTIZE, "strange += v[e] * 0.f", "strange += 0.f"),
        ("one lane's not finite", QUANTIZE, "strange = warp_sum(strange);", ""),
        ("every lane writes the numbers", QUANTIZE, "if (lane == 0) numbers[c] = level", "numbers[c] = level"),
        ("a group of 32 bits", QUANTIZE, "const int64_t first = group * kGroup, count", "const int64_t first = int(group * kGroup), count"),
        ("place of the numbers", QUANTIZE, "a.numbers + group * numbers_a_group(Bits);\n    float v", "a.numbers + group * 2;\n    float v"),
        ("stride of warps", QUANTIZE, "int64_t(gridDim.x) * (kThreads / 32)", "int64_t(gridDim.x) * kThreads"),
        ("step of a constant group", "common/quantize.h", "one_level ? 0.f : 1.f / step", "1.f / step", "0 times infinity is NaN, whose code is 0 too"),
        ("rounded towards zero", QUANTIZE, "__float2uint_rn(", "unsigned("),
    ],
    "dequantize": [
        ("bound of the loop", QUANTIZE, "i < a.n; i += stride", "i <= a.n; i += stride"),
        ("last element is lost", QUANTIZE, "i < a.n; i += stride", "i < a.n - 1; i += stride"),
        ("offset of 32 bits", QUANTIZE, "int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < a.n", "int i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < a.n"),
        ("bit of 32 bits", QUANTIZE, "a.codes[i * Bits / 8] >>", "a.codes[int(i) * Bits / 8] >>"),
        ("place of the numbers", QUANTIZE, "i / group_size(Bits) * numbers_a_group(Bits)", "i / group_size(Bits) * 2"),
        ("size of a group", QUANTIZE, "a.numbers + i / group_size(Bits)", "a.numbers + i / 64"),
        ("step and lowest change places", QUANTIZE, "float(code) * numbers[1] + numbers[0]", "float(code) * numbers[0] + numbers[1]"),
        ("code's other bits", QUANTIZE, "((1 << Bits) - 1);\n    const float v", "255;\n    const float v"),
        ("bit of a code", QUANTIZE, ">> (i * Bits % 8)", ">> (i % 8)"),
        ("factor is dropped", QUANTIZE, "g ? v * to_float(g[i]) : v", "v"),
        ("factor that is not there", QUANTIZE, "g ? v * to_float(g[i]) : v", "v * to_float(g[i])"),
        ("factor of another element", QUANTIZE, "v * to_float(g[i])", "v * to_float(g[i / 2])"),
    ],
}  # fmt: skip

MUTANTS = [
    Mutant(kernel, *fields)
    for planted in (
        _PLANTED,
        focal.PLANTED,
        margin.PLANTED,
        mmd.PLANTED,
        panel.PLANTED,
    )
    for kernel, all_fields in planted.items()
    for fields in all_fields
]
