"""pytorch-metric-learning's losses and their stand-ins."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets import pytorch_metric_learning as ours

LOSSES = ["NTXentLoss", "SupConLoss", "TripletMarginLoss"]


@pytest.fixture(scope="module")
def library():
    peers.library("pytorch_metric_learning")
    import pytorch_metric_learning.distances as distances
    import pytorch_metric_learning.losses as losses
    import pytorch_metric_learning.reducers as reducers

    class Library:
        pass

    Library.losses, Library.distances, Library.reducers = losses, distances, reducers
    return Library


def batch(rows, classes=4, features=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    centres = torch.randn(classes, features, generator=generator)
    return centres[labels] + torch.randn(rows, features, generator=generator), labels


def compare(library, name, embeddings, labels, ref=(), number=None, atol=2e-6, **options):
    """Both losses, with a temperature or margin that is learned where ``number`` is one."""
    key = "margin" if name == "TripletMarginLoss" else "temperature"

    def of(module):
        def function(x, *rest):
            rest = list(rest)
            given = {key: rest.pop()} if number is not None else {}
            loss = getattr(module, name)(**given, **options)
            return loss(x, labels, None, *rest, *ref[1:])

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


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
def test_the_same_labels_leave_pairs_of_one_row_out(library, name):
    x, labels = batch(20)
    other = batch(20, seed=1)[0]
    compare(library, name, x, labels, (other, labels))
    compare(library, name, x, labels, (other,))
    compare(library, name, x, labels, (other, labels.clone()))


def test_triplets_refuse_what_leaves_pairs_of_one_row_out():
    x, labels = batch(20)
    for ref_labels in (labels, None):
        with pytest.raises(ThawkitError, match=r"pass ref_labels=labels.clone\(\)"):
            ours.TripletMarginLoss()(x, labels, None, x + 1, ref_labels)


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


def test_regularizers_miners_and_statistics_are_refused():
    x, labels = batch(6)
    with pytest.raises(ThawkitError, match="indices_tuple is supported at None only"):
        ours.NTXentLoss()(x, labels, (labels, labels, labels))
    for loss in (ours.NTXentLoss, ours.SupConLoss, ours.TripletMarginLoss):
        with pytest.raises(ThawkitError, match="embedding_regularizer is supported at None only"):
            loss(embedding_regularizer=torch.nn.Identity())
        with pytest.raises(ThawkitError, match="collect_stats is supported at None only, got True"):
            loss(collect_stats=True)
        loss(collect_stats=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"swap": True}, "swap is supported at False only, got True"),
        ({"smooth_loss": True}, "smooth_loss is supported at False only, got True"),
        ({"triplets_per_anchor": 5}, "triplets_per_anchor is supported at 'all' only, got 5"),
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
