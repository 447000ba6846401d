"""sentence-transformers' MultipleNegativesRankingLoss and its stand-in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets.sentence_transformers import MultipleNegativesRankingLoss

DIRECTIONS = [
    ("query_to_doc",),
    ("query_to_doc", "query_to_query"),
    ("doc_to_query", "query_to_doc"),
    ("query_to_doc", "doc_to_doc"),
    ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
]
MODES = ["in_batch_negatives", "hard_negatives", "all_negatives"]


def cos_sim(a, b):
    """Somebody's own, by a name that is known."""
    return torch.cdist(a, b)


class Rows(nn.Module):
    """A model whose features are its embeddings already."""

    def forward(self, features):
        return {"sentence_embedding": features["rows"]}


def columns(rows, features=12, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, features, generator=generator)
    return [
        query,
        *(query + (1 + i) * torch.randn(rows, features, generator=generator) for i in range(count - 1)),
    ]


def of(loss, **options):
    """The loss as a function of the columns, and of the scale where there is one."""

    def function(*inputs):
        scale = {} if inputs[-1].dim() else {"scale": inputs[-1]}
        embeddings = [x for x in inputs if x.dim()]
        return loss(Rows(), **scale, **options)([{"rows": x} for x in embeddings], None)

    return function


# In sentence-transformers no scale is learned beside query_to_query or doc_to_doc: left-out pairs are minus
# infinity times the scale there, whose gradient is not a number.
WITHOUT_SCALE = {"query_to_query", "doc_to_doc"}


def inputs_for(directions, *size, **options):
    scale = () if WITHOUT_SCALE & set(directions) else (torch.tensor(20.0),)
    return *columns(*size, **options), *scale


@pytest.fixture(scope="module")
def theirs():
    losses = peers.library("sentence_transformers.sentence_transformer.losses")
    return losses.MultipleNegativesRankingLoss


def test_arguments(theirs):
    ours = MultipleNegativesRankingLoss
    peers.assert_same_arguments(ours.__init__, theirs.__init__, but=("similarity_fct",))
    peers.assert_same_arguments(ours.forward, theirs.forward, but=("labels",))
    name = "compute_loss_from_embeddings"
    peers.assert_same_arguments(getattr(ours, name), getattr(theirs, name), but=("labels",))
    options = {"scale": 30.0, "directions": ["query_to_doc"], "hardness_mode": "all_negatives"}
    options["hardness_strength"] = 2.0
    assert ours(Rows(), **options).get_config_dict() == theirs(Rows(), **options).get_config_dict()
    assert ours(Rows(), 50.0).temperature == theirs(Rows(), 50.0).temperature


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 19, 70])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_default(theirs, rows, count, scale):
    inputs = *columns(rows, count=count), torch.tensor(scale)
    peers.assert_same(of(MultipleNegativesRankingLoss), of(theirs), *inputs)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("rows", [1, 19])
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_directions(theirs, directions, rows, count):
    inputs = inputs_for(directions, rows, count=count)
    losses = (of(loss, directions=directions) for loss in (MultipleNegativesRankingLoss, theirs))
    peers.assert_same(*losses, *inputs)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("directions", [("query_to_doc",), ("query_to_doc", "doc_to_query")])
def test_one_softmax_a_direction(theirs, directions, count):
    inputs = *columns(19, count=count), torch.tensor(20.0)
    options = {"directions": directions, "partition_mode": "per_direction"}
    losses = (of(loss, **options) for loss in (MultipleNegativesRankingLoss, theirs))
    peers.assert_same(*losses, *inputs)


@pytest.mark.parametrize("directions", [DIRECTIONS[0], DIRECTIONS[4]])
@pytest.mark.parametrize(("rows", "count"), [(1, 2), (1, 4), (19, 2), (19, 4)])
@pytest.mark.parametrize("mode", MODES)
def test_hardness(theirs, mode, rows, count, directions):
    inputs = inputs_for(directions, rows, count=count)
    options = {"directions": directions, "hardness_mode": mode, "hardness_strength": 9.0}
    losses = (of(loss, **options) for loss in (MultipleNegativesRankingLoss, theirs))
    peers.assert_same(*losses, *inputs)


def test_hardness_of_one_softmax_a_direction(theirs):
    inputs = *columns(19, count=3), torch.tensor(20.0)
    options = {"directions": DIRECTIONS[2], "partition_mode": "per_direction"}
    options |= {"hardness_mode": "in_batch_negatives", "hardness_strength": 5.0}
    losses = (of(loss, **options) for loss in (MultipleNegativesRankingLoss, theirs))
    peers.assert_same(*losses, *inputs)


def test_similarities(theirs):
    from sentence_transformers.util import cos_sim, dot_score, euclidean_sim

    inputs = *columns(19, count=3), torch.tensor(1.0)
    for function, name in ((cos_sim, "cos_sim"), (dot_score, "dot_score")):
        expected = of(theirs, similarity_fct=function)
        for given in (function, name):
            peers.assert_same(of(MultipleNegativesRankingLoss, similarity_fct=given), expected, *inputs)
    with pytest.raises(ThawkitError, match="similarity_fct must be cos_sim or dot_score"):
        MultipleNegativesRankingLoss(Rows(), similarity_fct=euclidean_sim)


def test_model_and_scale_are_learned():
    model = nn.Sequential(nn.Linear(12, 8))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = model

        def forward(self, features):
            return {"sentence_embedding": self.layer(features["rows"])}

    loss = MultipleNegativesRankingLoss(Model(), nn.Parameter(torch.tensor(20.0)))
    loss(({"rows": x} for x in columns(5)), labels=torch.empty(0)).backward()
    assert all(p.grad is not None for p in loss.parameters())
    assert sum(1 for _ in loss.parameters()) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": 0.0}, "scale must be positive"),
        ({"similarity_fct": torch.cdist}, "similarity_fct must be cos_sim or dot_score"),
        ({"similarity_fct": cos_sim}, "similarity_fct must be cos_sim or dot_score"),
        ({"similarity_fct": "euclidean"}, "similarity_fct must be cos_sim or dot_score"),
        ({"directions": ()}, "directions must be several names, 'query_to_doc' among them"),
        ({"directions": ("doc_to_query",)}, "directions must be several names, 'query_to_doc' among them"),
        ({"directions": "query_to_doc"}, "directions must be several names"),
        ({"directions": ("query_to_doc", "sideways")}, "directions must be one of"),
        ({"partition_mode": "mean"}, "partition_mode must be one of"),
        (
            {"partition_mode": "per_direction", "directions": ("query_to_doc", "doc_to_doc")},
            "partition_mode='per_direction' needs the positive",
        ),
        ({"hardness_mode": "some"}, "hardness_mode must be one of"),
        ({"hardness_strength": -1.0}, "hardness_strength must be at least 0"),
    ],
)
def test_bad_arguments(options, says):
    with pytest.raises(ThawkitError, match=says):
        MultipleNegativesRankingLoss(Rows(), **options)


def test_gathering_in_a_single_process_changes_nothing():
    found = [
        of(MultipleNegativesRankingLoss, gather_across_devices=gathers)(*columns(5, count=3))
        for gathers in (False, True)
    ]
    torch.testing.assert_close(*found)


def test_bad_columns():
    loss = MultipleNegativesRankingLoss(Rows())
    with pytest.raises(ThawkitError, match="embeddings must be of two columns or more, got 1"):
        loss.compute_loss_from_embeddings(columns(4)[:1])


@pytest.mark.parametrize("rows", [(6, 3, 9), (6, 3), (6, 6, 3)])
def test_columns_have_a_row_for_each_query(rows):
    embeddings = [torch.randn(n, 4) for n in rows]
    with pytest.raises(ThawkitError, match=r"embeddings\[\d\] must have the shape of embeddings\[0\]"):
        MultipleNegativesRankingLoss(Rows()).compute_loss_from_embeddings(embeddings)
