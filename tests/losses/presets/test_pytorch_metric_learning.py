"""pytorch-metric-learning's losses and their stand-ins."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets import metric_learning_tuples as tuples
from thawkit.losses.presets import pytorch_metric_learning as ours

LOSSES = ["NTXentLoss", "SupConLoss", "TripletMarginLoss"]


@pytest.fixture(scope="module")
def library():
    peers.library("pytorch_metric_learning")
    import pytorch_metric_learning.distances as distances
    import pytorch_metric_learning.losses as losses
    import pytorch_metric_learning.miners as miners
    import pytorch_metric_learning.reducers as reducers

    class Library:
        pass

    Library.losses, Library.distances = losses, distances
    Library.reducers, Library.miners = reducers, miners
    return Library


def batch(rows, classes=4, features=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    centres = torch.randn(classes, features, generator=generator)
    return centres[labels] + torch.randn(rows, features, generator=generator), labels


def compare(library, name, embeddings, labels, ref=(), number=None, atol=2e-6, indices=None, **options):
    """Both losses, with a temperature or margin that is learned where ``number`` is one."""
    key = "margin" if name == "TripletMarginLoss" else "temperature"

    def of(module):
        def function(x, *rest):
            rest = list(rest)
            given = {key: rest.pop()} if number is not None else {}
            loss = getattr(module, name)(**given, **options)
            return loss(x, labels, indices, *rest, *ref[1:])

        return function

    learned = () if number is None else (torch.tensor(number),)
    peers.assert_same(of(ours), of(library.losses), embeddings, *ref[:1], *learned, atol=atol)


@pytest.mark.parametrize("name", LOSSES)
def test_arguments(library, name):
    mine, theirs = getattr(ours, name), getattr(library.losses, name)
    peers.assert_same_arguments(mine.__init__, theirs.__init__)
    peers.assert_same_arguments(mine.forward, theirs.forward)
    theirs(
        distance=None, reducer=None, embedding_regularizer=None, embedding_reg_weight=1, collect_stats=None
    )
    assert mine().state_dict() == theirs().state_dict() == {}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (2, 1), (2, 2), (3, 2), (13, 13), (20, 4), (150, 9)])
def test_defaults(library, name, rows, classes):
    compare(library, name, *batch(rows, classes))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [[0, 0], [0, 1], [0, 0, 1], [3, 3, 3], [0, 1, 2], [5, -7, 5, 2**40]])
def test_few_labels(library, name, labels):
    compare(library, name, batch(len(labels))[0], torch.tensor(labels))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("rows", "others"), [(1, 1), (1, 2), (1, 9), (9, 1), (20, 33), (150, 40)])
def test_ref(library, name, rows, others):
    ref = batch(others, seed=1)
    compare(library, name, *batch(rows), ref)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [([0], [0, 1]), ([0, 0], [1, 1]), ([0, 1], [0, 0]), ([0, 1], [2, 3])])
def test_few_labels_of_ref(library, name, labels):
    mine, theirs = (torch.tensor(x) for x in labels)
    compare(library, name, batch(len(mine))[0], mine, (batch(len(theirs), seed=1)[0], theirs))


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_labels_leave_pairs_of_one_row_out(library, name):
    x, labels = batch(20)
    other = batch(20, seed=1)[0]
    compare(library, name, x, labels, (other, labels))
    compare(library, name, x, labels, (other,))
    compare(library, name, x, labels, (other, labels.clone()))


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
def test_temperature(library, name, temperature):
    compare(library, name, *batch(40), number=temperature)
    compare(library, name, *batch(40), batch(30, seed=1), number=temperature)


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.5])
def test_margin(library, margin):
    compare(library, "TripletMarginLoss", *batch(40), number=margin)


@pytest.mark.parametrize(
    ("distance", "options"),
    [
        ("CosineSimilarity", {}),
        ("DotProductSimilarity", {}),
        ("DotProductSimilarity", {"normalize_embeddings": False}),
        ("LpDistance", {"power": 2}),
    ],
)
@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
def test_similarities(library, name, distance, options):
    chosen = getattr(library.distances, distance)(**options)
    compare(library, name, *batch(40), number=0.5, atol=1e-5, distance=chosen)
    compare(library, name, *batch(40), batch(30, seed=1), number=0.5, atol=1e-5, distance=chosen)


@pytest.mark.parametrize(
    ("distance", "options"),
    [
        ("LpDistance", {}),
        ("LpDistance", {"normalize_embeddings": False}),
        ("LpDistance", {"power": 2}),
        ("CosineSimilarity", {}),
        ("DotProductSimilarity", {}),
    ],
)
def test_distances_of_triplets(library, distance, options):
    chosen = getattr(library.distances, distance)(**options)
    compare(library, "TripletMarginLoss", *batch(40), distance=chosen)
    compare(library, "TripletMarginLoss", *batch(40), batch(30, seed=1), number=0.4, distance=chosen)


def reducers_of(name, library):
    r, weights = library.reducers, torch.tensor([0.5, 2.0, 0.0, 1.5])
    found = [
        r.MeanReducer(),
        r.SumReducer(),
        r.AvgNonZeroReducer(),
        r.ThresholdReducer(low=0),
        r.ClassWeightedReducer(weights),
    ]
    inner = [
        *found[:3],
        r.ThresholdReducer(low=0.5, high=1.5),
        r.ThresholdReducer(high=1.0),
        r.ClassWeightedReducer(weights),
    ]
    if name != "TripletMarginLoss":
        found += [r.PerAnchorReducer(), *(r.PerAnchorReducer(reducer) for reducer in inner)]
    return found + (inner[3:] if name == "SupConLoss" else [])


@pytest.mark.parametrize("name", LOSSES)
def test_reducers(library, name):
    x, labels = batch(40)
    for reducer in reducers_of(name, library):
        compare(library, name, x, labels, number=0.4, reducer=reducer)
        if type(reducer).__name__ != "PerAnchorReducer":  # theirs has a square of embeddings only
            compare(library, name, x, labels, batch(30, seed=1), number=0.4, reducer=reducer)


@pytest.mark.parametrize("name", LOSSES)
def test_reducers_where_a_row_has_no_positive(library, name):
    x, labels = batch(7)[0], torch.tensor([0, 1, 1, 2, 0, 0, 3])
    for reducer in reducers_of(name, library):
        compare(library, name, x, labels, number=0.4, reducer=reducer)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_self_supervised_wrapper(library, name, symmetric):
    def of(module):
        return library.losses.SelfSupervisedLoss(getattr(module, name)(), symmetric=symmetric)

    peers.assert_same(of(ours), of(library.losses), batch(20)[0], batch(20, seed=1)[0])


def test_labels_of_views_as_in_simclr(library):
    x, _ = batch(24)
    compare(library, "NTXentLoss", x, torch.arange(12).repeat(2), number=0.5)


def mined(library, x, labels, ref=()):
    """What several miners choose, pairs and triplets."""
    m = library.miners
    yield m.MultiSimilarityMiner(epsilon=0.3)(x, labels, *ref)
    yield m.PairMarginMiner(pos_margin=0.4, neg_margin=1.2)(x, labels, *ref)
    yield m.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")(x, labels, *ref)
    yield m.BatchHardMiner()(x, labels, *ref)
    none = torch.zeros(0, dtype=torch.int64)
    yield none, none, none
    yield none, none, labels.new_tensor([0, 1]), labels.new_tensor([1, 0])
    yield labels.new_tensor([1]), labels.new_tensor([2]), none, none
    yield tuple(labels.new_tensor([i]) for i in (0, 1, 0, 2))
    yield tuple(labels.new_tensor(i) for i in ([0, 0, 2], [1, 1, 3], [4, 4, 4]))  # one of them twice


@pytest.mark.parametrize("rows", [7, 40])
@pytest.mark.parametrize("name", LOSSES)
def test_miners(library, name, rows):
    x, labels = batch(rows)
    ref = batch(30, seed=1)
    for indices in mined(library, x, labels):
        compare(library, name, x, labels, number=0.4, indices=indices)
        compare(library, name, x, None, number=0.4, indices=indices)
    for indices in mined(library, x, labels, ref):
        compare(library, name, x, labels, ref, number=0.4, indices=indices)


@pytest.mark.parametrize("name", LOSSES)
def test_miners_with_distances_and_reducers(library, name):
    x, labels = batch(40)
    d, r = library.distances, library.reducers
    indices = library.miners.MultiSimilarityMiner(epsilon=0.3)(x, labels)
    for distance in (d.CosineSimilarity(), d.LpDistance(power=2)):
        compare(library, name, x, labels, number=0.5, indices=indices, distance=distance, atol=1e-5)
    for reducer in (
        r.MeanReducer(),
        r.SumReducer(),
        r.AvgNonZeroReducer(),
        r.ClassWeightedReducer(torch.tensor([0.5, 2.0, 0.0, 1.5])),
    ):
        compare(library, name, x, labels, number=0.4, indices=indices, reducer=reducer)


@pytest.mark.parametrize(("swap", "smooth"), [(True, False), (False, True), (True, True)])
def test_swap_and_smooth_loss(library, swap, smooth):
    options = {"swap": swap, "smooth_loss": smooth, "number": 0.3}
    for rows, classes in ((1, 1), (3, 2), (13, 13), (40, 4)):
        compare(library, "TripletMarginLoss", *batch(rows, classes), **options)
    x, labels = batch(20)
    for reducer in reducers_of("TripletMarginLoss", library):
        compare(library, "TripletMarginLoss", x, labels, reducer=reducer, **options)
    compare(library, "TripletMarginLoss", x, labels, distance=library.distances.CosineSimilarity(), **options)
    for indices in mined(library, x, labels):
        compare(library, "TripletMarginLoss", x, labels, indices=indices, **options)
    if not swap:
        compare(library, "TripletMarginLoss", x, labels, batch(30, seed=1), **options)


def test_triplets_in_several_blocks(library, monkeypatch):
    monkeypatch.setattr(tuples, "_AT_ONCE", 100)
    compare(library, "TripletMarginLoss", *batch(40), number=0.3, swap=True)


@pytest.mark.parametrize("same", [True, False])
def test_triplets_at_random(same):
    torch.manual_seed(0)
    labels = torch.tensor([3, 1, 3, 3, 1, 7])
    ref_labels = labels if same else torch.tensor([1, 3, 5, 3])
    own = 0 if same else None
    a, p, n = tuples.random_triplets(labels, ref_labels, own, 2000)
    allowed = {
        (i, j, k)
        for i in range(6)
        for j in range(len(ref_labels))
        for k in range(len(ref_labels))
        if labels[i] == ref_labels[j] != ref_labels[k] and not (same and i == j)
    }
    found, counts = torch.stack((a, p, n), 1).unique(dim=0, return_counts=True)
    assert {tuple(triplet) for triplet in found.tolist()} == allowed
    for i in {i for i, *_ in allowed}:
        drawn = counts[found[:, 0] == i]
        assert drawn.sum() == 2000
        assert (drawn - 2000 / len(drawn)).abs().max() < 5 * (2000 / len(drawn)) ** 0.5
    loss = ours.TripletMarginLoss(triplets_per_anchor=3)
    x = torch.randn(6, 4, requires_grad=True)
    loss(x, labels).backward()
    assert x.grad is not None


def test_triplets_at_random_where_there_is_no_choice(library):
    x, labels = batch(3)[0], torch.tensor([0, 0, 1])
    compare(library, "TripletMarginLoss", x, labels, number=0.7, triplets_per_anchor=5)


X, LABELS = torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("indices", "says"),
    [
        (LABELS, "indices_tuple must hold three tensors .* got Tensor of 0"),
        ((LABELS, LABELS), "indices_tuple must hold three tensors .* got tuple of 2"),
        ((LABELS, LABELS, X), "indices_tuple must hold three tensors"),
        ((LABELS, LABELS, LABELS[:3]), r"as many rows in each place, got \[6, 6, 3\] indices"),
        ((LABELS, LABELS, LABELS[:3], LABELS), r"as many rows in each place, got \[6, 6, 3, 6\] indices"),
        ((LABELS, LABELS, LABELS + 6), "indices_tuple must hold indices of 6 anchors and 6 others"),
        ((LABELS - 1, LABELS, LABELS), "indices_tuple must hold indices of 6 anchors and 6 others"),
    ],
)
@pytest.mark.parametrize("name", LOSSES)
def test_bad_indices(name, indices, says):
    with pytest.raises(ThawkitError, match=says):
        getattr(ours, name)()(X, LABELS, indices)


def test_bad_use_of_indices(library):
    x, labels = batch(6)
    both = (torch.tensor([0, 1]), torch.tensor([2, 3])) * 2
    with pytest.raises(ThawkitError, match="must not name a pair both positive and negative"):
        ours.SupConLoss()(x, labels, both)
    with pytest.raises(ThawkitError, match="reducer must not be PerAnchorReducer where indices_tuple"):
        ours.NTXentLoss(reducer=library.reducers.PerAnchorReducer())(x, labels, both)
    weighted = library.reducers.ClassWeightedReducer(torch.ones(4))
    with pytest.raises(ThawkitError, match="labels must be given for a ClassWeightedReducer"):
        ours.NTXentLoss(reducer=weighted)(x, None, both)
    with pytest.raises(ThawkitError, match="swap=True must come without ref_emb"):
        ours.TripletMarginLoss(swap=True)(x, labels, None, x[:4], labels[:4])
    with pytest.raises(ThawkitError, match="ref_emb must have the dtype of embeddings"):
        ours.TripletMarginLoss()(x, labels, None, x.double(), labels)


@pytest.mark.parametrize(
    ("name", "distance"),
    [
        ("NTXentLoss", "DotProductSimilarity"),
        ("SupConLoss", "DotProductSimilarity"),
        ("TripletMarginLoss", "LpDistance"),
    ],
)
def test_distance_and_reducer_may_be_replaced(library, name, distance):
    x, labels = batch(20)
    mine, theirs = getattr(ours, name)(), getattr(library.losses, name)()
    for loss in (mine, theirs):
        loss.distance = getattr(library.distances, distance)(normalize_embeddings=False)
        loss.reducer = library.reducers.SumReducer()
    peers.assert_same(lambda x: mine(x, labels), lambda x: theirs(x, labels), x, atol=1e-4)
    mine.reducer = library.reducers.DivisorReducer()
    with pytest.raises(ThawkitError, match="reducer must be one of"):
        mine(x, labels)
    mine.reducer, mine.distance = None, library.distances.SNRDistance()
    with pytest.raises(ThawkitError, match="distance must be"):
        mine(x, labels)


def test_indices_under_autocast_are_compared_in_full_precision():
    x, labels = batch(20)
    pairs = torch.where((labels[:, None] == labels).fill_diagonal_(False))
    others = torch.where(labels[:, None] != labels)
    for name in ("NTXentLoss", "SupConLoss"):
        loss = getattr(ours, name)()
        with torch.autocast("cpu"):
            got = loss(x, labels, (*pairs, *others))
        torch.testing.assert_close(got, loss(x, labels, (*pairs, *others)), rtol=1e-6, atol=1e-6)


def test_regularizers_and_statistics_are_refused():
    for loss in (ours.NTXentLoss, ours.SupConLoss, ours.TripletMarginLoss):
        with pytest.raises(ThawkitError, match="embedding_regularizer is supported at None only"):
            loss(embedding_regularizer=torch.nn.Identity())
        with pytest.raises(ThawkitError, match="collect_stats is supported at None only, got True"):
            loss(collect_stats=True)
        loss(collect_stats=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"triplets_per_anchor": 0}, "triplets_per_anchor must be 'all' or above 0, got 0"),
        ({"distance": torch.nn.Identity()}, "distance must be LpDistance with p=2 and power=1, or"),
        ({"reducer": torch.nn.Identity()}, "reducer must be one of MeanReducer, .*, got Identity"),
    ],
)
def test_bad_options_of_triplets(options, says):
    with pytest.raises(ThawkitError, match=says):
        ours.TripletMarginLoss(**options)


def test_distances_and_reducers_without_a_counterpart(library):
    d, r = library.distances, library.reducers
    similar = [ours.NTXentLoss, ours.SupConLoss]
    for loss in similar:
        for distance in (
            d.LpDistance(),
            d.LpDistance(power=2, normalize_embeddings=False),
            d.CosineSimilarity(power=2),
            d.SNRDistance(),
        ):
            with pytest.raises(ThawkitError, match="distance must be CosineSimilarity"):
                loss(distance=distance)
    for distance in (d.LpDistance(p=1), d.DotProductSimilarity(normalize_embeddings=False), d.SNRDistance()):
        with pytest.raises(ThawkitError, match="distance must be LpDistance"):
            ours.TripletMarginLoss(distance=distance)
    for loss in [*similar, ours.TripletMarginLoss]:
        with pytest.raises(ThawkitError, match=r"reducer must be one of .*, got DoNothingReducer"):
            loss(reducer=r.DoNothingReducer())
    for loss in (ours.NTXentLoss, ours.TripletMarginLoss):
        with pytest.raises(ThawkitError, match=r"reducer must have low=0 and high=None here, got .*low=0.1"):
            loss(reducer=r.ThresholdReducer(low=0.1))
    with pytest.raises(ThawkitError, match=r"reducer must be one of .*, got PerAnchorReducer"):
        ours.TripletMarginLoss(reducer=r.PerAnchorReducer())
    with pytest.raises(ThawkitError, match="aggregation_func of reducer must be its default"):
        ours.NTXentLoss(reducer=r.PerAnchorReducer(aggregation_func=functools.partial(torch.sum, dim=1)))


@pytest.mark.parametrize("loss", [ours.NTXentLoss, ours.SupConLoss, ours.TripletMarginLoss])
def test_bad_input(loss):
    x, labels = batch(6)
    with pytest.raises(ThawkitError, match="labels must be a tensor, got NoneType"):
        loss()(x)
    with pytest.raises(ThawkitError, match=r"labels must have shape \(6,\)"):
        loss()(x, labels[:5])
    with pytest.raises(ThawkitError, match="embeddings must have shape"):
        loss()(x[0], labels)
    with pytest.raises(ThawkitError, match=r"ref_labels must have shape \(4,\)"):
        loss()(x, labels, None, x[:4], labels[:3])


@pytest.mark.parametrize(
    "loss",
    [
        ours.NTXentLoss(),
        ours.SupConLoss(),
        ours.TripletMarginLoss(),
        ours.TripletMarginLoss(smooth_loss=True),
    ],
    ids=["NTXent", "SupCon", "triplets", "smooth triplets"],
)
def test_bad_labels_of_ref(loss):
    x, labels, ref = torch.randn(6, 4), torch.arange(6) // 2, torch.randn(5, 4)
    for bad in (labels, labels[:5, None], [0] * 5):
        with pytest.raises(ThawkitError, match="ref_labels must"):
            loss(x, labels, None, ref, bad)
    with pytest.raises(ThawkitError, match="labels must have shape"):
        loss(x, labels, None, ref)


@pytest.mark.parametrize("convert", [torch.Tensor.float, torch.Tensor.bool])
def test_indices_are_integers(convert):
    x, labels = torch.randn(6, 4), torch.arange(6) // 2
    chosen = tuple(convert(torch.tensor(i)) for i in ([0, 1], [1, 0], [2, 3]))
    with pytest.raises(ThawkitError, match="indices_tuple must hold integers"):
        ours.TripletMarginLoss()(x, labels, chosen)
