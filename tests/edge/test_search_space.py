"""The mobile family and its search space: shapes, cost by hand, exact size, moves that stay inside, and refusals."""

import itertools
import json
import random
from collections import Counter
from typing import Any

import pytest
import torch

from samespace.edge.models import build_model, count
from samespace.edge.models.blocks import StagedNet
from samespace.edge.search import Architecture, Block, SearchSpace, parse_space
from samespace.sdk.errors import ConfigError

#: Two stages, all operators, few options.
TINY = SearchSpace(
    image_size=16,
    dim=8,
    stem_strides=(1, 2),
    stem_widths=(4, 8),
    activations=("relu", "hardswish"),
    kernels=(3, 5),
    expansions=(1, 2),
    widths=((4, 8), (8, 12)),
    depths=(1, 2),
)


def architecture(*stages: tuple[Block, ...], **own: Any) -> Architecture:
    return Architecture(**{"stem_stride": 2, "stem_width": 8, "activation": "relu", "stages": stages, **own})


def samples(space: SearchSpace, number: int, seed: int = 0) -> list[Architecture]:
    rng = random.Random(seed)
    return [space.sample(rng) for _ in range(number)]


def test_every_architecture_gives_embeddings_and_a_feature_map_per_stage() -> None:
    seen = set()
    for one in samples(TINY, 30):
        model = build_model("mobile", one.arguments(TINY)).eval()
        assert isinstance(model, StagedNet)
        with torch.no_grad():
            maps = model.stages(torch.zeros(3, 3, 16, 16))
            assert model(torch.zeros(3, 3, 16, 16)).shape == (3, 8)
        shapes = [tuple(one.shape[1:]) for one in maps]
        sides = [16 // one.stem_stride // 2**number for number in (1, 2)]
        assert shapes == [(stage[0].width, side, side) for stage, side in zip(one.stages, sides, strict=True)]
        seen |= {block.op for stage in one.stages for block in stage}
    assert seen == {"inverted", "fused", "basic", "mixer"}


@pytest.mark.parametrize("op", ["inverted", "fused", "basic", "mixer"])
@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
def test_the_gradient_reaches_every_parameter(op: str, activation: str) -> None:
    torch.manual_seed(0)
    blocks = [{"op": "basic", "width": 8, "stride": 2}, {"op": op, "width": 8, "expansion": 2}]
    model = build_model("mobile", {"dim": 8, "image_size": 16, "activation": activation, "blocks": blocks}).train()
    output = model(torch.randn(6, 3, 16, 16))
    (output * torch.randn(output.shape)).sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0] == []


#: Block at 8 channels in, 12 out (mixer 8), stride 2 (mixer 1), map 8 x 8 in -> multiply-accumulates by hand.
BY_HAND = {
    # 1x1 expansion to 16 on 8 x 8; depthwise 5 x 5 and the projection on 4 x 4.
    "inverted": 64 * 8 * 16 + 16 * 16 * 25 + 16 * 16 * 12,
    "fused": 16 * 8 * 16 * 25 + 16 * 16 * 12,
    "basic": 16 * 8 * 12 * 25 + 16 * 12 * 12 * 25 + 16 * 8 * 12,
    # Rows and columns: 8 -> 16 -> 8 for each of 8 columns (rows) and 8 channels; channels: 8 -> 16 -> 8 at 64 places.
    "mixer": 2 * (2 * 8 * 16 * 8 * 8) + 2 * 8 * 16 * 64,
}


@pytest.mark.parametrize("op", BY_HAND)
def test_the_cost_of_a_block_is_that_of_a_count_by_hand(op: str) -> None:
    block = {"op": op, "width": 8 if op == "mixer" else 12, "kernel": 5, "expansion": 2, "stride": 1 if op == "mixer" else 2}
    side, width = (8, 8) if op == "mixer" else (4, 12)
    arguments = {"dim": 4, "image_size": 16, "stem_width": 8, "stem_stride": 2, "blocks": [block]}
    stem = 8 * 8 * 27 * 8
    head = 2 * side * side * width * 4  # at two places, see EmbeddingHead
    assert count(build_model("mobile", arguments), 16).macs == stem + BY_HAND[op] + head


def every_architecture(space: SearchSpace) -> set[str]:
    """Keys of all, from all combinations of all options, used or not."""
    options = list(itertools.product(space.operators, space.kernels, space.expansions))
    stages: list[list[tuple[Block, ...]]] = []
    for widths in space.widths:
        stages.append([])
        for width, depth in itertools.product(widths, space.depths):
            for chain in itertools.product(options, repeat=depth):
                if chain[0][0] != "mixer":
                    blocks = (Block(op=op, kernel=kernel, expansion=expansion, width=width) for op, kernel, expansion in chain)
                    stages[-1].append(tuple(blocks))
    stems = itertools.product(space.stem_strides, space.stem_widths, space.activations)
    return {
        architecture(*chosen, stem_stride=stride, stem_width=width, activation=activation).key
        for stride, width, activation in stems
        for chosen in itertools.product(*stages)
    }


@pytest.mark.parametrize(
    "choices",
    [
        {"operators": ("basic", "mixer", "fused"), "widths": ((4, 8),), "stem_widths": (4,)},
        {"operators": ("inverted", "basic"), "expansions": (2,), "widths": ((4,), (4, 8)), "stem_strides": (1,)},
        {"operators": ("mixer", "basic"), "depths": (2, 3), "widths": ((4, 8),)},
    ],
)
def test_the_size_counts_different_networks_exactly(choices: dict[str, Any]) -> None:
    space = TINY.model_validate({**TINY.model_dump(), **choices})
    keys = every_architecture(space)
    assert len(keys) == space.size()
    drawn = {one.key for one in samples(space, 200)}
    assert drawn <= keys


def test_the_default_space_has_more_than_ten_million_architectures() -> None:
    assert SearchSpace().size() > 10**7


def test_options_that_an_operator_ignores_make_no_second_key() -> None:
    plain = architecture((Block(op="basic", kernel=3, width=8), Block(op="mixer", width=8)))
    dressed = architecture(
        (Block(op="basic", kernel=3, expansion=4, width=8), Block(op="mixer", kernel=5, expansion=2, width=8))
    )
    assert plain == dressed
    assert plain.key == dressed.key
    assert plain.key != architecture((Block(op="basic", kernel=5, width=8), Block(op="mixer", width=8))).key


def test_different_keys_are_different_networks() -> None:
    """Equal cost, equal names and shapes of all weights, and equal activation would be one network."""
    pictures = {}
    for one in samples(TINY, 60):
        model = build_model("mobile", one.arguments(TINY))
        shapes = tuple((name, tuple(value.shape)) for name, value in model.state_dict().items())
        pictures.setdefault((shapes, count(model, 16), one.activation), set()).add(one.key)
    assert all(len(keys) == 1 for keys in pictures.values())
    assert len(pictures) > 50


def test_an_architecture_survives_json_and_keeps_its_key() -> None:
    for one in samples(TINY, 10):
        again = Architecture.model_validate_json(one.model_dump_json())
        assert (again, again.key) == (one, one.key)
        assert json.loads(json.dumps(one.arguments(TINY))) == one.arguments(TINY)
    one = architecture((Block(op="fused", kernel=3, expansion=2, width=8),))
    # Published results are named by keys: this one stays.
    assert one.key == "6a0b47682ae8cfc7"


def test_equal_seeds_draw_equal_architectures() -> None:
    assert samples(TINY, 5, seed=1) == samples(TINY, 5, seed=1)
    assert samples(TINY, 5, seed=1) != samples(TINY, 5, seed=2)


def test_sampling_is_uniform_over_the_choices() -> None:
    drawn = samples(TINY, 4000)
    later = [stage[1].op for one in drawn for stage in one.stages if len(stage) > 1]
    first = [stage[0].op for one in drawn for stage in one.stages]
    kernels = [block.kernel for one in drawn for stage in one.stages for block in stage if block.op != "mixer"]
    for values, choices in (
        ([one.activation for one in drawn], TINY.activations),
        ([one.stem_stride for one in drawn], TINY.stem_strides),
        ([one.stages[1][0].width for one in drawn], TINY.widths[1]),
        ([len(one.stages[0]) for one in drawn], TINY.depths),
        (later, TINY.operators),
        (first, ("inverted", "fused", "basic")),
        (kernels, TINY.kernels),
    ):
        counts, expected = Counter(values), len(values) / len(choices)
        assert set(counts) == set(choices)
        # Five standard deviations of a binomial.
        assert all(abs(one - expected) < 5 * expected**0.5 for one in counts.values())


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_mutants_stay_inside(rate: float) -> None:
    rng = random.Random(0)
    parents = samples(TINY, 40)
    children = [TINY.mutate(one, rng, rate) for one in parents]
    assert all(TINY.contains(child) for child in children)
    # Differ more with the rate, and in every choice sooner or later.
    changed = sum(child != parent for child, parent in zip(children, parents, strict=True))
    assert changed >= {0.1: 10, 0.5: 35, 1.0: 38}[rate]


def test_a_mutation_rate_of_zero_changes_nothing() -> None:
    rng = random.Random(0)
    assert all(TINY.mutate(one, rng, 0) == one for one in samples(TINY, 20))


def test_mutation_reaches_every_choice() -> None:
    rng, one = random.Random(0), TINY.largest()
    keys = set()
    space = TINY.model_validate({**TINY.model_dump(), "depths": (1,), "widths": ((4, 8),), "operators": ("basic", "inverted")})
    one = space.largest()
    for _ in range(2000):
        one = space.mutate(one, rng, 0.3)
        keys.add(one.key)
    assert len(keys) == space.size()


def test_a_child_has_its_choices_from_its_parents() -> None:
    rng = random.Random(0)
    parents = samples(TINY, 60)
    mixed = 0
    for one, other in itertools.pairwise(parents):
        child = TINY.crossover(one, other, rng)
        assert TINY.contains(child)
        assert child.stem_stride in (one.stem_stride, other.stem_stride)
        assert child.activation in (one.activation, other.activation)
        for made, a, b in zip(child.stages, one.stages, other.stages, strict=True):
            assert len(made) in (len(a), len(b))
            assert made[0].width in (a[0].width, b[0].width)
            for index, block in enumerate(made):
                given = [(x[index].op, x[index].kernel, x[index].expansion) for x in (a, b) if index < len(x)]
                assert (block.op, block.kernel, block.expansion) in given
        mixed += child not in (one, other)
    assert mixed > 40


def test_equal_parents_have_equal_children() -> None:
    assert all(TINY.crossover(one, one, random.Random(0)) == one for one in samples(TINY, 10))


STRANGERS = [
    ({"stem_stride": 4}, "stem_stride = 4"),
    ({"stem_width": 16}, "stem_width = 16"),
    ({"activation": "relu6"}, "activation = 'relu6'"),
    ({"stages": ((Block(op="basic", width=8),),)}, "1 stages instead of 2"),
    ({"stages": ((Block(op="basic", width=8),), (Block(op="basic", width=16),))}, r"stages\[1\]\[0\].width = 16"),
    ({"stages": ((Block(op="basic", kernel=7, width=8),), (Block(op="basic", width=8),))}, r"stages\[0\]\[0\].kernel = 7"),
    ({"stages": ((Block(op="basic", width=8),) * 3, (Block(op="basic", width=8),))}, r"depth of stages\[0\] = 3"),
]


@pytest.mark.parametrize(("change", "named"), STRANGERS)
def test_a_stranger_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    stranger = TINY.largest().model_copy(update=change)
    assert not TINY.contains(stranger)
    for refuse in (
        lambda: TINY.check(stranger),
        lambda: TINY.mutate(stranger, random.Random(0), 0.1),
        lambda: TINY.crossover(TINY.largest(), stranger, random.Random(0)),
    ):
        with pytest.raises(ConfigError, match=named):
            refuse()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"kernels": [4]}, "kernels: 4"),
        ({"kernels": []}, "kernels"),
        ({"widths": [[8, 8], [8]]}, r"widths\[0\]"),
        ({"widths": [[8], [2]]}, "widths.1.0"),
        ({"operators": ["mixer"]}, "operators"),
        ({"operators": ["basic", "attention"]}, "operators.1"),
        ({"activations": ["gelu"]}, "activations.0"),
        ({"stem_strides": [3]}, "stem_strides: 3"),
        ({"image_size": 40}, "image_size = 40"),
        ({"image_size": 16}, "image_size = 16"),  # the last map would be 1 x 1
        ({"depths": [0]}, "depths.0"),
        ({"expansions": [99]}, "expansions.0"),
        ({"pooling": "max"}, "pooling"),
        ({"kernel": [3]}, "kernel"),
    ],
)
def test_a_wrong_space_is_refused_by_name(content: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"search space: {named}"):
        parse_space(content)


@pytest.mark.parametrize(
    ("blocks", "named"),
    [
        ([], "blocks"),
        ("basic", "blocks"),
        (["basic"], r"blocks\[0\]"),
        ([{"op": "basic"}], r"blocks\[0\].*'width'"),
        ([{"op": "basic", "width": 8, "krenel": 3}], r"blocks\[0\].*'krenel'"),
        ([{"op": "basic", "width": 8}, {"op": "conv", "width": 8}], r"blocks\[1\].op"),
        ([{"op": "basic", "width": 0}], r"blocks\[0\].width"),
        ([{"op": "basic", "width": 8, "kernel": 4}], r"blocks\[0\].kernel"),
        ([{"op": "basic", "width": 8, "stride": 3}], r"blocks\[0\].stride"),
        ([{"op": "inverted", "width": 8, "expansion": 0}], r"blocks\[0\].expansion"),
        ([{"op": "mixer", "width": 16, "stride": 2}], r"blocks\[0\] is a mixer"),
        ([{"op": "basic", "width": 16}, {"op": "mixer", "width": 8}], r"blocks\[1\] is a mixer.*width = 16"),
        ([{"op": "basic", "width": 8, "stride": 2}] * 4, "image_size"),
    ],
)
def test_wrong_blocks_are_refused_by_name(blocks: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_model("mobile", {"dim": 8, "image_size": 16, "blocks": blocks})


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [[]],
        [[{"op": "mixer", "width": 8}]],
        [[{"op": "basic", "width": 8}, {"op": "basic", "width": 12}]],
        [[{"op": "basic", "width": 8, "kernel": 4}]],
    ],
)
def test_an_impossible_architecture_is_refused(stages: list[list[dict[str, Any]]]) -> None:
    with pytest.raises(ValueError, match="stages"):
        Architecture.model_validate({"stem_stride": 1, "stem_width": 8, "activation": "relu", "stages": stages})
