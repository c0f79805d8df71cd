"""Growth keeps the function where it says so, by known factors, and says what it cannot do."""

from dataclasses import replace

import pytest
import torch

from mixopt.errors import ConfigError
from mixopt.proxies.checkpoint import ModelState
from mixopt.proxies.growth import Growth, block_order, fork, grow
from mixopt.proxies.model import ProxyStack
from mixopt.proxies.optim import initial_state
from mixopt.proxies.train import StackTrainer

from .builders import CPU, VOCAB, make_run, shards, small_config, train

torch.set_num_threads(1)

# Logits of the models below are of size 1 to 10; sums in float32 are good to about 1e-6 of that.
TOLERANCE = 1e-4
EXACT = Growth(drop=0.0, noise=0.0)


def trained(config, seed=0):
    """A state with nothing at its special start: no zero matrices, gains that differ, averages of their own."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, tensor in initial_state(config, seed).tensors.items():
        draw = torch.randn(tensor.shape, generator=generator)
        scale = 0.2 if key.endswith(".gain") or key.startswith("buffers/") else tensor.shape[-1] ** -0.5
        tensors[key] = scale * draw + (1.0 if key.endswith(".gain") else 0.0)
    return ModelState(70, tensors)


def model(config, state, kind="weights"):
    stack = ProxyStack(config, 1).requires_grad_(False)
    for name, parameter in stack.named_parameters():
        parameter[0].copy_(state.tensors[f"{kind}/{name}"])
    stack.load_routers(0, state.tensors)
    return stack


def logits(config, state, kind="weights"):
    tokens = torch.randint(VOCAB, (1, 2, 16), generator=torch.Generator().manual_seed(1))
    stack = model(config, state, kind)
    return stack(tokens)[0] @ stack.embedding[0].T


def assert_same_function(source, target, growth=EXACT, tolerance=TOLERANCE):
    state = trained(source)
    grown = grow(state, source, target, growth=growth)
    for kind in ("weights", "ema"):
        change = (logits(target, grown, kind) - logits(source, state, kind)).abs().max().item()
        assert change < tolerance, (kind, change)


def same(one, other, prefix=""):
    keys = [key for key in one.tensors if key.startswith(prefix)]
    return all(torch.equal(one.tensors[key], other.tensors[key]) for key in keys)


# --- forks ---------------------------------------------------------------------


@pytest.mark.parametrize("router", ["topk", "relu", "dense"])
def test_a_fork_keeps_weights_averages_and_the_routers_state_and_forgets_step_and_moments(router):
    config = small_config(depth=2, router=router)
    state = trained(config)
    child = fork(state, config)
    assert child.step == 0
    for prefix in ("weights/", "ema/", "buffers/"):
        assert same(state, child, prefix)
    start = initial_state(config, 0)
    assert set(child.tensors) == set(start.tensors)
    kept = ("weights/", "ema/", "buffers/")
    assert all(torch.equal(child.tensors[k], start.tensors[k]) for k in child.tensors if not k.startswith(kept))


def test_a_fork_shares_no_memory_with_its_parent():
    config = small_config()
    state = trained(config)
    child = fork(state, config)
    before = logits(config, child)
    for tensor in state.tensors.values():
        tensor.zero_()
    assert torch.equal(logits(config, child), before)


# --- width ---------------------------------------------------------------------


@pytest.mark.parametrize("router", ["topk", "relu", "dense"])
@pytest.mark.parametrize("times", [2, 3])
def test_fpi_keeps_the_function_at_integer_multiples(router, times):
    source = small_config(depth=2, router=router, width=16, head_dim=8, expert_width=6, shared_width=10)
    target = replace(
        source, width=16 * times, kv_heads=times, expert_width=6 * times, shared_width=10 * times
    )  # fmt: skip
    assert_same_function(source, target)


@pytest.mark.parametrize(("old", "new"), [((2, 1), (4, 1)), ((2, 1), (4, 2)), ((2, 1), (4, 4)), ((2, 2), (4, 2))])
def test_heads_grow_within_their_groups(old, new):
    source = small_config(width=8 * old[0], head_dim=8, kv_heads=old[1], expert_width=8, shared_width=16)
    target = replace(source, width=8 * new[0], kv_heads=new[1])
    assert_same_function(source, target)


def test_hidden_units_grow_to_any_number():
    source = small_config(expert_width=7, shared_width=9)
    assert_same_function(source, replace(source, expert_width=10, shared_width=25))


def test_widening_by_no_integer_multiple_starts_nearer_than_chance():
    source = small_config(width=32, head_dim=8)
    target = replace(source, width=48, kv_heads=2)
    state = trained(source)
    before, after = logits(source, state), logits(target, grow(state, source, target, growth=EXACT))
    assert 0 < (after - before).std() < 0.5 * before.std()


def test_aki_takes_added_neurons_from_the_next_block():
    source = small_config(depth=2, width=16, head_dim=8, expert_width=4, shared_width=4)
    target = replace(source, width=32, kv_heads=2, expert_width=8, shared_width=8)
    state = trained(source)
    fpi, aki = (grow(state, source, target, growth=replace(EXACT, width=w)) for w in ("fpi", "aki"))
    first, following = "weights/blocks.0.shared.down", "weights/blocks.1.shared.down"
    assert torch.equal(aki.tensors[first][:, :16], fpi.tensors[first][:, :16])
    assert torch.equal(aki.tensors[first][:, 16:], fpi.tensors[following][:, 16:])
    assert torch.equal(aki.tensors[following], fpi.tensors[following])
    assert torch.equal(aki.tensors["weights/embedding"], fpi.tensors["weights/embedding"])


def test_aki_of_one_block_is_refused():
    source = small_config(width=16, head_dim=8)
    with pytest.raises(ConfigError, match="next block"):
        grow(trained(source), source, replace(source, width=32), growth=Growth(width="aki"))


def test_without_noise_copies_never_separate_and_with_noise_they_do(tmp_path):
    source = small_config(width=16, expert_width=4, shared_width=4)
    target = replace(source, width=32, kv_heads=2, expert_width=8, shared_width=8)
    apart = {}
    for noise in (0.0, 0.01):
        run = make_run("a", shards(tmp_path / str(noise)), target, seed=0, milestones=[20])
        run.state = grow(trained(source), source, target, growth=Growth(noise=noise))
        train(StackTrainer(target, [run], CPU))
        gate = run.state.tensors["weights/blocks.0.shared.up"][:, :8]
        apart[noise] = (gate[:, :4] - gate[:, 4:]).abs().mean() / gate.abs().mean()
    assert apart[0.0] < 1e-3
    assert apart[0.01] > 1e-2


# --- depth ---------------------------------------------------------------------


def test_blocks_are_repeated_in_place_or_as_a_whole():
    assert block_order(2, 5, "interpolate") == (0, 0, 0, 1, 1)
    assert block_order(3, 6, "interpolate") == (0, 0, 1, 1, 2, 2)
    assert block_order(2, 5, "stack") == (0, 1, 0, 1, 0)


@pytest.mark.parametrize("method", ["interpolate", "stack"])
def test_deeper_models_hold_the_old_blocks_in_order(method):
    source = small_config(depth=2)
    state, target = trained(source), replace(source, depth=4)
    grown = grow(state, source, target, growth=Growth(depth=method))
    for new, old in enumerate(block_order(2, 4, method)):
        for name in ("attention.qkv", "moe.up", "norm2.gain"):
            expected = state.tensors[f"ema/blocks.{old}.{name}"]
            assert torch.equal(grown.tensors[f"ema/blocks.{new}.{name}"], expected)
        assert torch.equal(grown.tensors[f"buffers/{new}.bias"], state.tensors[f"buffers/{old}.bias"])


# --- experts -------------------------------------------------------------------

DENSE = small_config(router="dense", depth=2, shared_width=24, experts=1, top_k=1, expert_width=8)
COPIES = small_config(depth=2, experts=4, top_k=2, shared_width=24, expert_width=8)
GROUPS = small_config(depth=2, experts=8, top_k=4, shared_width=8, expert_width=6)


def test_plain_copies_of_a_dense_feed_forward_keep_the_function():
    assert_same_function(DENSE, COPIES)


@pytest.mark.parametrize("top_k", [4, 8])
def test_virtual_groups_keep_the_function(top_k):
    assert_same_function(DENSE, replace(GROUPS, top_k=top_k))


def test_the_dense_control_grows_into_its_own_moe():
    moe = small_config(depth=2, experts=8, top_k=2, shared_width=16, expert_width=8)
    assert_same_function(replace(moe, router="dense"), moe)


def test_top_k_picks_one_copy_of_each_shard():
    state = grow(trained(DENSE), DENSE, GROUPS, growth=EXACT)
    layer = model(GROUPS, state).moe_layers()[0]
    _, chosen = layer.route(torch.randn(1, 50, GROUPS.width, generator=torch.Generator().manual_seed(2)))
    assert torch.equal((chosen % 4).sort(-1).values, torch.arange(4).expand(1, 50, 4))
    assert len(chosen.div(4, rounding_mode="floor").unique()) > 1


@pytest.mark.parametrize("router", ["topk", "relu"])
@pytest.mark.parametrize(("experts", "top_k", "expert_width"), [(8, 4, 8), (16, 8, 4), (8, 4, 5), (8, 4, 16)])
def test_finer_experts_keep_the_function_of_an_moe(router, experts, top_k, expert_width):
    source = small_config(depth=2, router=router, experts=4, top_k=2, shared_width=16, expert_width=8)
    assert_same_function(source, replace(source, experts=experts, top_k=top_k, expert_width=expert_width))


def test_all_steps_at_once_keep_the_function_where_each_does():
    source = replace(DENSE, width=16, head_dim=8, kv_heads=1)
    assert_same_function(source, replace(GROUPS, width=32, head_dim=8, kv_heads=2))


def test_dropping_nothing_equals_the_plain_copy():
    state = trained(DENSE)
    copied, dropped = (grow(state, DENSE, COPIES, growth=replace(EXACT, drop=d)) for d in (0.0, 0.5))
    up = copied.tensors["weights/blocks.0.moe.up"]
    assert all(torch.equal(up[0], expert) for expert in up[1:])
    assert not torch.equal(dropped.tensors["weights/blocks.0.moe.up"], up)


def test_half_of_each_experts_units_are_drawn_anew_in_all_three_matrices():
    state = trained(DENSE)
    copied, dropped = (grow(state, DENSE, COPIES, growth=replace(EXACT, drop=d)) for d in (0.0, 0.5))
    up, down = "weights/blocks.1.moe.up", "weights/blocks.1.moe.down"
    changed = (dropped.tensors[up] != copied.tensors[up]).any(1)
    gate, linear = changed.chunk(2, dim=-1)
    assert torch.equal(gate, linear)
    assert torch.equal(gate, (dropped.tensors[down] != copied.tensors[down]).any(2))
    assert torch.equal(gate.sum(1), torch.full((4,), 4))
    assert len({tuple(units.tolist()) for units in gate}) > 1


def test_redrawn_units_have_the_mean_and_spread_of_what_they_replace():
    source = replace(DENSE, depth=1, shared_width=8, expert_width=400)
    target = replace(COPIES, depth=1, shared_width=8, expert_width=400)
    state = trained(source)
    state.tensors["weights/blocks.0.shared.down"].add_(0.3)
    redrawn = grow(state, source, target, growth=replace(EXACT, drop=1.0)).tensors["weights/blocks.0.moe.down"][0]
    replaced = state.tensors["weights/blocks.0.shared.down"][8:]
    # 12,800 draws: five standard errors of the mean are 0.044 of the spread, of the spread 0.03.
    assert abs(redrawn.mean() - replaced.mean()) < 0.05 * replaced.std()
    assert abs(redrawn.std() / replaced.std() - 1) < 0.04


# --- all of them ---------------------------------------------------------------


@pytest.mark.parametrize("target", [COPIES, GROUPS, replace(DENSE, width=64, depth=3, kv_heads=2)])
def test_averages_grow_like_the_weights(target):
    state = trained(DENSE)
    twin = {f"ema/{k.removeprefix('weights/')}": t for k, t in state.tensors.items() if k.startswith("weights/")}
    grown = grow(ModelState(5, {**state.tensors, **twin}), DENSE, target, growth=Growth())
    weights = {k.removeprefix("weights/"): t for k, t in grown.tensors.items() if k.startswith("weights/")}
    assert all(torch.equal(grown.tensors[f"ema/{name}"], tensor) for name, tensor in weights.items())


def test_the_seed_alone_decides_what_is_drawn():
    states = [grow(trained(DENSE), DENSE, COPIES, seed=seed) for seed in (0, 0, 1)]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_a_grown_model_trains_on(tmp_path):
    data, target = shards(tmp_path), small_config(depth=2, experts=8, top_k=4, expert_width=8, kv_heads=2, head_dim=8)
    source = small_config(router="dense", width=16, head_dim=8, experts=1, top_k=1, expert_width=8, shared_width=16)
    parent = make_run("parent", data, source, seed=0, milestones=[40])
    train(StackTrainer(source, [parent], CPU))
    cold, warm = (make_run(name, data, target, seed=1, milestones=[30]) for name in ("cold", "warm"))
    warm.state = grow(parent.state, source, target)
    train(StackTrainer(target, [cold, warm], CPU))
    assert not warm.diverged
    assert warm.curve[0][1] < cold.curve[0][1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 65}, "vocab_size must stay"),
        ({"head_dim": 8}, "head_dim must stay"),
        ({"depth": 1}, "depth can only grow"),
        ({"width": 16, "kv_heads": 1}, "width can only grow"),
        ({"shared_width": 8}, "shared_width can only grow"),
        ({"expert_width": 4}, "do not fit"),
        ({"experts": 6}, "one integer factor"),
        ({"experts": 8}, "one integer factor"),
        ({"top_k": 1}, "one integer factor"),
        ({"router": "dense"}, "there is no way"),
        ({"router": "relu"}, "there is no way"),
        ({"width": 64, "kv_heads": 1}, "query heads"),
    ],
)
def test_what_cannot_be_grown_is_said_in_words(changes, words):
    source = small_config(depth=2, kv_heads=2)
    with pytest.raises(ConfigError, match=words):
        grow(trained(source), source, replace(source, **changes))


def test_a_dense_model_wider_than_its_experts_is_refused():
    with pytest.raises(ConfigError, match="do not fit into 2 experts"):
        grow(trained(DENSE), DENSE, replace(GROUPS, top_k=2, expert_width=4))


@pytest.mark.parametrize("fields", [{"width": "net2net"}, {"depth": "copy"}, {"drop": 1.5}, {"noise": -1.0}])
def test_unknown_methods_and_impossible_shares_are_refused(fields):
    with pytest.raises(ConfigError, match=f"growth.{next(iter(fields))}"):
        Growth(**fields)
