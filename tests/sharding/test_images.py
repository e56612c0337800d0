"""The vision tower, and its embeddings and positions in prompts, on several ranks, held to the
single-device model.

Embeddings are whole on every rank, where those of words are put together from all; positions
have the batch's rows along their second dimension.
"""

import dataclasses
import functools

import models
import pytest
import serving

import qwen35
from qwen35.sharding.mesh import Mesh


def assert_same(said, checkpoint, name):
    expected = models.look(qwen35.load(checkpoint(name)))
    assert len(said) == len(expected) == 6
    for actual, wanted in zip(said, expected, strict=True):
        assert wanted.isfinite().all()
        assert models.relative_error(actual, wanted) < 1e-5


def test_processes(checkpoint, run_ranks):
    for said in run_ranks("look", Mesh(tp=2), path=str(checkpoint("two_layers"))):
        assert_same(said, checkpoint, "two_layers")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dp", "tp"), [("heads_of_27b", 1, 4), ("even", 2, 2)])
def test_virtual_devices(name, dp, tp, checkpoint, run_ranks):
    mesh, path = Mesh(dp=dp, tp=tp), str(checkpoint(name))
    [said] = run_ranks("look_on_virtual_devices", mesh, path=path, processes=1, timeout=600)
    assert_same(said, checkpoint, name)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """seeing(name, depth): the directory of a model of `models.CONFIGS` with a tower, which has the
    16 heads of every published one."""

    @functools.cache
    def write(name: str, depth: int):
        text = models.CONFIGS[name]
        tower = qwen35.VisionConfig(
            depth=depth,
            hidden_size=64,
            intermediate_size=96,
            num_heads=16,
            patch_size=4,
            out_hidden_size=text.hidden_size,
        )
        directory = tmp_path_factory.mktemp("seeing")
        config = dataclasses.replace(text, vision=tower, image_token_id=5, video_token_id=6)
        qwen35.save(models.wide_params(config), directory)
        return directory

    return write


@pytest.mark.parametrize(
    ("scenario", "tp", "more"),
    [
        ("encode", 2, {}),
        ("encode", 4, {}),
        ("encode_on_virtual_devices", 4, {"processes": 1, "segments": "auto"}),
        pytest.param("encode_on_virtual_devices", 16, {"processes": 1}, marks=pytest.mark.slow),
    ],
)
def test_the_tower_split_by_heads(seeing, run_ranks, scenario, tp, more):
    """The order of the sums over ranks is all that may differ."""
    path = seeing("heads_of_27b", 2)
    expected = models.picture_vectors(qwen35.load(path))
    for vectors in run_ranks(scenario, Mesh(tp=tp), path=str(path), **more):
        assert vectors.shape == expected.shape
        assert models.relative_error(vectors, expected) < 1e-5


@pytest.mark.parametrize(
    ("scenario", "dp", "tp", "processes"),
    [
        ("see_in_processes", 1, 2, None),
        pytest.param("see_on_virtual_devices", 1, 2, 1, marks=pytest.mark.slow),
        pytest.param("see_on_virtual_devices", 2, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_pictures_in_an_engine(seeing, run_ranks, scenario, dp, tp, processes):
    """Tokens, and what the prefix cache saves, are those of one device."""
    path = seeing("two_layers", 1)
    expected = serving.see(serving.engine_for(qwen35.load(path), slots=4))
    saved = [cached for _, cached in expected]
    assert saved == [0, 16, 8, 2, 2], "new; the same; other words; other pixels; words alone"
    more = {} if processes is None else {"processes": processes}
    assert run_ranks(scenario, Mesh(dp=dp, tp=tp), path=str(path), **more)[0] == expected
