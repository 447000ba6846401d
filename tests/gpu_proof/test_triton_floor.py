"""Rung 5: what the Triton kernels move and compute, counted, against what the arithmetic needs.

The counts are exact and asserted; the times made of them are predictions, not measurements. The ladder tells
those of a family's launch that does most.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", minversion="3.8")

from thawkit.kernels.mmd_pairs import Layer, Pairs

from tests.gpu_proof.families import FAMILIES
from tests.gpu_proof.ladder import record
from tests.gpu_proof.triton_checks import interpreter
from tests.gpu_proof.triton_checks.floor import H100, Floor, facts, floor
from tests.gpu_proof.triton_checks.memory import Traffic

pytestmark = interpreter.required()


def _counted(family: str, launch) -> Traffic:
    kernels = FAMILIES[family].load()
    with interpreter.checked(races=False) as memory:
        launch(kernels)
    return memory.traffic


def _climbed(family: str, traffic: Traffic, elements: int) -> None:
    record(FAMILIES[family].rung, 5, **facts(traffic, elements))


def test_sigmoid_focal_moves_each_byte_once():
    x, t, grad = (torch.zeros(128, 64, dtype=torch.bfloat16) for _ in range(3))
    total = torch.zeros(8)
    launch = lambda kernels: kernels.sigmoid_focal(
        x, t, kernels.Outputs(total=total, grad=grad), positive=0.25, negative=0.75, gamma=2.0
    )
    traffic = _counted("focal", launch)
    assert traffic.loaded == 2 * x.nbytes
    assert traffic.stored == grad.nbytes + total.nbytes
    assert traffic.transcendentals == 2 * x.numel()  # exp(-|x|) and the logarithm of softplus
    assert floor(traffic).bound == "memory"
    assert floor(traffic).memory == pytest.approx(traffic.unique / H100.memory)


@pytest.mark.parametrize(("classes", "reads"), [(64, 1), (5000, 3)])
def test_softmax_focal_reads_logits_once_where_a_tile_holds_the_classes(classes, reads):
    x, t = torch.zeros(32, classes), torch.zeros(32, dtype=torch.int64)
    grad, total = torch.zeros_like(x), torch.zeros(32)
    launch = lambda kernels: kernels.softmax_focal(x, t, kernels.Outputs(total=total, grad=grad), gamma=2.0)
    traffic = _counted("focal", launch)
    assert traffic.loaded == reads * x.nbytes + t.nbytes
    assert traffic.stored - grad.nbytes <= total.nbytes
    if reads == 1:
        _climbed("focal", traffic, x.numel())


def test_bits_are_a_sixteenth_of_what_they_stand_for():
    x, y = (torch.zeros(1 << 14, dtype=torch.bfloat16) for _ in range(2))
    mask = torch.zeros(1 << 11, dtype=torch.uint8)
    forward = _counted("frozen bits", lambda kernels: kernels.pack("relu", x, y, mask, 0.0, float("inf")))
    assert (forward.loaded, forward.stored) == (x.nbytes, y.nbytes + mask.nbytes)
    assert forward.unique == x.nbytes + y.nbytes + mask.nbytes
    backward = _counted("frozen bits", lambda kernels: kernels.masked("pass", x, mask, y, 1.0, 0.0))
    assert backward.unique == x.nbytes + y.nbytes + mask.nbytes
    _climbed("frozen bits", forward, x.numel())


@pytest.mark.parametrize("layout", [(16, 64, 1), (2, 4, 2048)])
def test_channels_are_scaled_and_summed_in_one_pass(layout):
    x, other, y, of_other = (torch.zeros(layout, dtype=torch.bfloat16) for _ in range(4))
    mask, numbers = torch.zeros(x.numel() // 8, dtype=torch.uint8), torch.zeros(2, layout[1])
    family, kernels = "frozen channels", FAMILIES["frozen channels"].load()
    forward = _counted(
        family, lambda kernels: kernels.channel_affine(x, other, y, mask, layout, *numbers, 0.0, 6.0)
    )
    moved = 3 * x.nbytes + mask.nbytes
    assert moved + 8 * layout[1] <= forward.unique <= moved + 64 * layout[1]  # of scales a sector at least
    parts = torch.zeros(2, kernels.sum_parts(layout), layout[1])
    backward = _counted(
        family,
        lambda kernels: kernels.channel_affine_backward(x, other, mask, y, of_other, parts, layout, *numbers),
    )
    assert backward.stored == 2 * x.nbytes + parts.nbytes
    moved = 4 * x.nbytes + mask.nbytes + parts.nbytes
    assert moved + 8 * layout[1] <= backward.unique <= moved + 64 * layout[1]
    assert backward.transcendentals == 0
    if layout[2] > 1:
        _climbed(family, backward, x.numel())


def test_max_pool_reads_each_number_once_where_windows_do_not_overlap():
    x, y = torch.zeros(2, 8, 32, 32), torch.zeros(2, 8, 16, 16)
    codes = torch.zeros(y.numel() // 4, dtype=torch.uint8)
    sizes = [1, 32, 32], [1, 16, 16], [1, 2, 2], [1, 2, 2], [0, 0, 0], [1, 1, 1]
    geometry = 2, 8, *sizes, False, 2
    forward = _counted("frozen max-pool", lambda kernels: kernels.max_pool(x, y, codes, geometry))
    assert (forward.loaded, forward.stored) == (x.nbytes, y.nbytes + codes.nbytes)
    assert forward.unique == x.nbytes + y.nbytes + codes.nbytes
    backward = _counted("frozen max-pool", lambda kernels: kernels.max_pool_backward(y, x, codes, geometry))
    assert backward.stored == x.nbytes
    assert backward.loaded == y.nbytes + x.numel()  # an upstream gradient once, a byte an element
    assert backward.unique == x.nbytes + y.nbytes + codes.nbytes
    _climbed("frozen max-pool", forward, x.numel())


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounding_moves_values_once(bits):
    x = torch.zeros(4096, dtype=torch.bfloat16)
    codes = torch.zeros(x.numel() * bits // 8, dtype=torch.uint8)
    numbers = torch.zeros(x.numel() // (64 if bits == 2 else 32))
    forward = _counted("frozen quantize", lambda kernels: kernels.quantize(x, codes, numbers, bits))
    assert (forward.loaded, forward.stored) == (x.nbytes, codes.nbytes + numbers.nbytes)
    assert forward.unique == x.nbytes + codes.nbytes + numbers.nbytes
    backward = _counted("frozen quantize", lambda kernels: kernels.dequantize(codes, numbers, None, x, bits))
    assert backward.stored == x.nbytes
    assert backward.unique == forward.unique
    if bits == 4:
        _climbed("frozen quantize", forward, x.numel())


def test_softmax_epilogue_reads_a_panel_twice_and_writes_it_once():
    rows, columns = 3, 5000
    scores, slopes = torch.zeros(rows, columns), torch.zeros(rows, columns, dtype=torch.bfloat16)
    scale, loss = torch.tensor(1.0), torch.zeros(rows)

    def launch(kernels):
        kernels.softmax(kernels.Panel(scores, slopes, 0, scale), loss)

    traffic = _counted("pairwise epilogue", launch)
    assert traffic.loaded == 2 * scores.nbytes + rows * 8  # and for each row the scale and the positive
    assert traffic.stored == slopes.nbytes + loss.nbytes
    alone = _counted(
        "pairwise epilogue", lambda kernels: kernels.softmax(kernels.Panel(scores, None, 0, scale), loss)
    )
    assert alone.loaded == scores.nbytes + rows * 8
    assert alone.stored == loss.nbytes
    _climbed("pairwise epilogue", traffic, scores.numel())


_MMD_EXPONENTIALS = {"doubling": 1, "rbf": 5, "laplace": 5, "imq": 0, "energy": 0}


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.bfloat16, "doubling"), *((torch.float32, k) for k in _MMD_EXPONENTIALS)]
)
def test_mmd_reads_products_once_and_writes_slopes_once(dtype, kind):
    """And of five bandwidths that double, one exponential an entry is all."""
    rows, columns, bandwidths = 32, 1024, 5
    scores = torch.zeros(1, rows, columns)
    slopes = scores if dtype == torch.float32 else torch.zeros(scores.shape, dtype=dtype)
    of_rows, numbers = torch.ones(1, rows + columns), torch.full((1, bandwidths), -1.0)

    def launch(kernels, written=slopes, learned=False):
        value = torch.zeros(kernels.programs(rows, columns, 1), dtype=torch.float64)
        assert value.numel() == rows * columns // _MMD_BLOCK[0] // _MMD_BLOCK[1]
        layer = Layer(kind, bandwidths, written is not None)
        pairs = Pairs((layer,), of_rows, numbers, numbers, 1e-6, of_rows[0], None, None, rows, True, value)
        kernels.tile(pairs, scores, written, 0, rows, 2.0)

    traffic, alone = (_counted("mmd", lambda k, w=w: launch(k, w)) for w in (slopes, None))
    programs = rows * columns // _MMD_BLOCK[0] // _MMD_BLOCK[1]
    of_numbers = 4 * {"energy": 0, "doubling": 2}.get(kind, 2 * bandwidths)
    of_program = 8 * sum(_MMD_BLOCK) + 8 + of_numbers  # norms and weights of its rows and columns, its sum
    assert traffic.loaded == alone.loaded == scores.nbytes + programs * of_program
    assert traffic.stored == slopes.nbytes + 8 * programs
    assert alone.stored == 8 * programs
    assert traffic.transcendentals == _MMD_EXPONENTIALS[kind] * scores.numel()
    if kind == "doubling":
        assert traffic.loaded + traffic.stored < 1.2 * (scores.nbytes + slopes.nbytes)
        assert floor(traffic).bound in ("memory", "cache")
        if dtype == torch.float32:
            _climbed("mmd", traffic, scores.numel())


_MMD_BLOCK = 8, 256  # rows and columns of a program


def test_mmd_permutations_write_the_kernel_over_its_products():
    rows, columns = 32, 1024
    scores = torch.zeros(rows, columns)
    of_rows, numbers = torch.ones(1, rows + columns), torch.full((1, 5), -1.0)

    def launch(kernels):
        none = torch.empty(0, dtype=torch.float64)
        layer = Layer("doubling", 5)
        pairs = Pairs((layer,), of_rows, numbers, numbers, 1e-6, none, None, None, 0, False, none)
        kernels.values(pairs, scores, 0, rows)

    traffic = _counted("mmd", launch)
    programs = rows * columns // _MMD_BLOCK[0] // _MMD_BLOCK[1]
    assert traffic.loaded == scores.nbytes + programs * 4 * (sum(_MMD_BLOCK) + 2)
    assert traffic.stored == scores.nbytes
    assert traffic.transcendentals == scores.numel()


def test_fused_losses_make_their_products_anew():
    """Of n x n: once forward and once a pass backward, and one for the gradient of each."""
    n, features = 512, 64
    q, k = (torch.zeros(n, features, dtype=torch.bfloat16) for _ in range(2))
    scale, of_row, gradient, none = (
        torch.tensor(1.0),
        torch.zeros(n),
        torch.zeros(n, features),
        torch.empty(0),
    )

    def sums(kernels):
        return kernels.Sums(*torch.zeros(3, n), torch.ones(n))

    def info_nce(kernels):
        of_rows = sums(kernels)
        kernels.softmax_forward(q, k, scale, of_row, of_rows)
        kernels.info_nce_backward_queries(q, k, scale, of_rows, gradient, none)
        kernels.info_nce_backward_keys(q, k, scale, of_rows, gradient)

    def siglip(kernels):
        kernels.siglip_forward(q, k, scale, scale, 0, of_row)
        kernels.siglip_backward_rows(q, k, scale, scale, 0, of_row, gradient, none, none)
        kernels.siglip_backward_columns(q, k, scale, scale, 0, of_row, gradient)

    def clip(kernels):
        of_rows, of_columns = sums(kernels), sums(kernels)
        kernels.softmax_forward(q, k, scale, of_row, of_rows)
        kernels.softmax_forward(k, q, scale, of_row, of_columns)
        kernels.clip_backward(q, k, scale, of_rows, of_columns, gradient, none)
        kernels.clip_backward(k, q, scale, of_columns, of_rows, gradient, none)

    def nt_xent(kernels):
        of_rows = sums(kernels)
        kernels.softmax_forward(q, q, scale, of_row, of_rows, n // 2)
        kernels.nt_xent_backward(q, scale, of_rows, gradient, none)

    for launch, products in ((info_nce, 5), (siglip, 5), (nt_xent, 3), (clip, 6)):
        traffic = _counted("pairwise (fused)", launch)
        assert traffic.flops == products * 2 * n * n * features
    _climbed("pairwise (fused)", traffic, n * n)


def _margin_rows(kernels, rows: int, columns: int, positives: int):
    """Rows whose class is the first columns."""
    whole = {"dtype": torch.int32}
    return kernels.Rows(
        torch.ones(rows), torch.ones(columns), torch.zeros(rows, **whole),
        torch.full((rows,), positives, **whole), torch.arange(columns, **whole),
        torch.arange(columns, **whole), False, False,
    )  # fmt: skip


def test_pairs_and_the_hardest_triplets_read_a_panel_once():
    rows, columns = 3, 5000
    scores, w, margin = torch.zeros(rows, columns), torch.zeros(rows, columns), torch.tensor(0.2)
    of_row, active = torch.zeros(4, rows), torch.zeros(rows, dtype=torch.int64)
    of_all, of_one = rows * columns * 4, rows * 4  # what a number each takes

    def pairs(kernels):
        panel, known = kernels.Panel(scores, w, 0, torch.ones(())), _margin_rows(kernels, rows, columns, 70)
        kernels.contrastive_pairs(panel, known, margin, margin, None, *of_row)

    traffic = _counted("margin losses", pairs)
    assert traffic.loaded == 2 * of_all + 5 * of_one  # the products, the columns' norms
    assert traffic.stored == of_all + of_row.nbytes

    def hardest(kernels):
        panel, known = kernels.Panel(scores, w, 0, torch.ones(())), _margin_rows(kernels, rows, columns, 70)
        two = torch.zeros(rows, 2, dtype=torch.int64), torch.zeros(rows, 2)
        kernels.hardest_triplet(panel, known, margin, of_row[0], active, *two)

    traffic = _counted("margin losses", hardest)
    assert traffic.loaded == 3 * of_all + 5 * of_one  # and the columns' numbers
    assert traffic.stored == rows * (4 + 8 + 2 * 8 + 2 * 4)


@pytest.mark.parametrize("positives", [4, 8, 20])
def test_all_triplets_read_distances_once_and_for_every_eight_positives(positives):
    rows, columns = 3, 5000
    d, w, margin = torch.ones(rows, columns), torch.zeros(rows, columns), torch.tensor(0.2)
    of_row, active = torch.zeros(2, rows), torch.zeros(rows, dtype=torch.int64)
    of_all, of_one = rows * columns * 4, rows * 4

    def launch(kernels):
        panel = kernels.Panel(d, w, 0, torch.ones(()))
        known = _margin_rows(kernels, rows, columns, positives)
        kernels.all_triplets(panel, known, d, margin, of_row[0], active, of_row[1])

    traffic = _counted("margin losses", launch)
    blocks = -(-columns // 512)
    again = (1 + blocks) * positives * of_one  # the positives, and once more for each block of columns
    assert traffic.loaded == (1 + -(-positives // 8)) * of_all + again + 3 * of_one
    assert traffic.stored == w.nbytes + of_row.nbytes + active.nbytes
    if positives == 8:
        _climbed("margin losses", traffic, d.numel())


def test_a_similarity_is_read_once_and_a_few_once_more():
    rows, columns, k, group = 3, 1 << 14, 10, 32
    products, best = torch.zeros(rows, columns), torch.zeros(rows, columns // group, dtype=torch.int64)
    traffic = _counted(
        "top_k", lambda kernels: kernels.best_of_groups(kernels.Scores(products, 0), group, best)
    )
    assert (traffic.loaded, traffic.stored) == (products.nbytes, best.nbytes)
    chosen, keys = (1 << 40) + best[:, :k], torch.zeros(rows, k * group, dtype=torch.int64)
    _climbed("top_k", traffic, products.numel())
    traffic = _counted(
        "top_k",
        lambda kernels: kernels.keys_of_groups(
            kernels.Scores(products, 0), group, chosen + (1 << 31) - 1, keys
        ),
    )
    assert traffic.loaded == keys.numel() * products.element_size() + rows * k * keys.element_size()
    assert traffic.stored == keys.nbytes


def test_a_floor_is_what_takes_longest():
    found = Floor(memory=1.0, cache=3.0, products=2.0, operations=0.1, transcendentals=0.5)
    assert (found.bound, found.seconds) == ("cache", 3.0)


@pytest.mark.parametrize(
    ("loss", "stored", "moved", "anew", "transcendentals"),
    [
        # bytes: of scores written and read; of slopes written, and read by each product
        ("info_nce", 3, 4 + 2 * 4 + 2 + 2 * 2, 5, 3),
        ("siglip", 3, 4 + 4 + 2 + 2 * 2, 5, 4),
        ("clip", 4, 4 + 3 * 4 + 4 + 4 + 2 + 2 * 2, 6, 6),
        ("nt_xent", 3, 4 + 2 * 4 + 2 + 2 * 2, 3, 3),
    ],
)
def test_few_features_are_where_storing_products_costs_more_than_making_them_anew(
    loss, stored, moved, anew, transcendentals
):
    """Where the fused kernels end: predicted floors of one entry of the matrix of logits."""
    from thawkit.ops.pairwise.triton import FEW_FEATURES

    def floor_of_stored(features: int) -> float:
        return stored * 2 * features / H100.products + moved / H100.cache

    def floor_of_anew(features: int, efficiency: float = 0.5) -> float:
        return anew * 2 * features / (efficiency * H100.products) + transcendentals / H100.transcendentals

    most = FEW_FEATURES[loss]
    assert floor_of_anew(most) < floor_of_stored(most)
    assert loss == "nt_xent" or floor_of_anew(4 * most) > floor_of_stored(4 * most)
