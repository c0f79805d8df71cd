"""Files of model states: damaged is absent, another version or shape is one clear error."""

import json
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixopt.errors import StudyError
from mixopt.proxies.checkpoint import VERSION, load_states, save_states
from mixopt.proxies.optim import initial_state

from .builders import small_config


def saved(path, **fields):
    """The path of a checkpoint of two models."""
    save_states(path, [initial_state(small_config(**fields), seed) for seed in range(2)], {"note": 1})
    return path


def test_states_and_metadata_come_back_as_they_were(tmp_path):
    states = [initial_state(small_config(), seed) for seed in range(2)]
    save_states(tmp_path / "s.safetensors", states, {"note": [1, None]})
    again, metadata = load_states(tmp_path / "s.safetensors", small_config())
    assert metadata == {"note": [1, None]}
    assert [state.step for state in again] == [0, 0]
    for mine, theirs in zip(states, again, strict=True):
        assert mine.tensors.keys() == theirs.tensors.keys()
        assert all(torch.equal(mine.tensors[name], theirs.tensors[name]) for name in mine.tensors)


def test_others_may_read_a_checkpoint(tmp_path):
    assert stat.S_IMODE(saved(tmp_path / "s.safetensors").stat().st_mode) == 0o644


def test_a_missing_file_is_absent(tmp_path):
    assert load_states(tmp_path / "s.safetensors") is None


@pytest.mark.parametrize("damage", ["one bit", "torn", "empty", "foreign"])
def test_a_damaged_file_is_absent_and_said(tmp_path, caplog, damage):
    path = saved(tmp_path / "s.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "foreign":
        save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes({"one bit": bytes(content), "torn": bytes(content[:100]), "empty": b""}[damage])
    assert load_states(path, small_config()) is None
    assert "checkpoint damaged" in caplog.text


def test_another_version_names_both_versions_and_what_to_do(tmp_path):
    path = saved(tmp_path / "s.safetensors")
    header = {"version": VERSION + 1, "states": "in a way that is not known here"}
    save_file(load_file(path), path, metadata={"mixopt": json.dumps(header)})
    with pytest.raises(StudyError, match=rf"s\.safetensors: expected .* version {VERSION}, got version 2; .*remove"):
        load_states(path)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"width": 64}, r"expected ema/blocks.* of 32 x .*, got of 64 x"),
        ({"experts": 8}, r"expected ema/blocks\.0\.moe\.\w+ of 4 x .*, got of 8 x"),
        ({"depth": 2}, r"expected ema/blocks\.1\..* absent, got of"),
        ({"router": "dense"}, r"expected ema/blocks\.0\.moe\.\w+ of .*, got absent"),
    ],
)
def test_another_shape_names_a_tensor_with_both_shapes(tmp_path, fields, parts):
    with pytest.raises(StudyError, match=f"another shape: {parts}.*; .*remove the file"):
        load_states(saved(tmp_path / "s.safetensors", **fields), small_config())
