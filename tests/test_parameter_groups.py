"""Groups decay and learn by rule, by layer and by kind; each parameter is in one; a rule for nothing is refused."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import options
from hydra.utils import get_object
from torch import nn

from tunelab.config import ConfigError, validate
from tunelab.fitting import build
from tunelab.models import CNN, MLP
from tunelab.optimizers import parameter_groups
from tunelab.prepare import complete
from tunelab.regularizers import L1, L2, ElasticNet
from tunelab.tasks.grouping import check_groups

KINDS = ("bias", "norm", "embedding")


class _Everything(nn.Module):
    """A parameter of each kind."""

    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.embedding = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm((3, 4))  # its weight has two dimensions
        self.slope = nn.PReLU()
        self.conv = nn.Conv2d(2, 3, 3)
        self.batch_norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(4, 5, bias=False)


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))


class _Tower(nn.Module):
    """Blocks inside an encoder, as in a transformer; the head is registered first."""

    def __init__(self, depth=3):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.embedding = nn.Conv2d(1, 4, 2)
        self.encoder = nn.Module()
        self.encoder.positions = nn.Parameter(torch.zeros(9, 4))
        self.encoder.blocks = nn.ModuleList(_Block() for _ in range(depth))
        self.encoder.norm = nn.LayerNorm(4)


DECAYED = {"linear.weight", "conv.weight", "head.weight"}


def _in_groups(model, groups, what):
    """What the group of each parameter says, by the parameter's name; one in two groups would be an error."""
    owner = {}
    for group in groups:
        for parameter in group["params"]:
            name = next(n for n, p in model.named_parameters() if p is parameter)
            assert name not in owner, name
            owner[name] = group.get(what)
    return owner


def _decays(model, groups):
    return _in_groups(model, groups, "weight_decay")


def _rates(model, **keys):
    return _in_groups(model, parameter_groups(model, 0.1, 1.0, **keys), "lr")


def _names(model, **keys):
    return [group["name"] for group in parameter_groups(model, 0.1, 1.0, **keys)]


# ---- kinds


def test_biases_norms_embeddings_and_slopes_do_not_decay_by_default(compose):
    model = _Everything()
    owner = _decays(model, build(compose().parameter_groups)(model, weight_decay=0.3, lr=0.1))
    assert owner == {name: 0.3 if name in DECAYED else 0.0 for name, _ in model.named_parameters()}


def test_without_kinds_to_spare_everything_decays(compose):
    model = _Everything()
    groups = build(compose("parameter_groups.undecayed=[]").parameter_groups)(model, weight_decay=0.3, lr=0.1)
    assert _decays(model, groups) == {name: 0.3 for name, _ in model.named_parameters()}
    assert len(groups) == 1


@pytest.mark.parametrize(
    ("kinds", "spared"),
    [
        (["norm"], {"norm.weight", "norm.bias", "batch_norm.weight", "batch_norm.bias"}),
        (["embedding"], {"embedding.weight", "class_token"}),
        # everything with fewer than two dimensions; the bias of a norm over two dimensions has two itself
        (["bias"], {"linear.bias", "slope.weight", "conv.bias", "batch_norm.weight", "batch_norm.bias"}),
    ],
)
def test_each_kind_spares_its_own(kinds, spared):
    model = _Everything()
    owner = _decays(model, parameter_groups(model, 0.3, undecayed=kinds))
    assert {name for name, decay in owner.items() if decay == 0} == spared


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("kinds", [(), KINDS])
def test_a_shared_parameter_is_in_one_group_once(kinds, apart):
    model = _Everything()
    model.head.weight = model.embedding.weight
    groups = parameter_groups(model, 0.3, undecayed=kinds, matrices_apart=apart)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))


def test_without_weight_decay_there_is_one_group():
    model = _Everything()
    (group,) = parameter_groups(model, 0.0)
    assert _decays(model, [group]) == {name: 0.0 for name, _ in model.named_parameters()}
    assert set(group) == {"name", "params", "weight_decay"}  # the lr is the optimizer's own


def test_frozen_parameters_are_in_no_group():
    model = _Everything()
    model.linear.requires_grad_(False)
    owner = _decays(model, parameter_groups(model, 0.3))
    assert set(owner) == {name for name, _ in model.named_parameters() if not name.startswith("linear")}


def test_an_unknown_kind_is_refused_with_those_there_are(compose):
    with pytest.raises(ConfigError) as caught:
        validate(compose("parameter_groups.undecayed=[bias,biases]"))
    assert str(caught.value) == (
        "`parameter_groups.undecayed` must be 'bias', 'norm' or 'embedding', got biases. "
        "Try parameter_groups.undecayed=[bias,norm]."
    )


@pytest.mark.parametrize("activation", [nn.ReLU, nn.PReLU])
@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize("kind", [MLP, CNN])
def test_the_groups_of_a_model_hold_each_of_its_parameters_once(kind, normalization, activation):
    model = kind((1, 8, 8), 10, width=16, depth=3, activation=activation, normalization=normalization)
    owner = _decays(model, parameter_groups(model, 0.01))
    # in our models it is the matrices and kernels that decay
    assert owner == {name: 0.01 if p.ndim > 1 else 0.0 for name, p in model.named_parameters()}


class _Users(nn.Module):
    """What people write: parameters of their own, and torch's beside Embedding and Linear."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 9, 4))
        self.positional_encoding = nn.Parameter(torch.zeros(9, 4))
        self.queries = nn.Parameter(torch.zeros(1, 5, 4))  # whatever its name: added to each example
        self.prompt_tokens = nn.ParameterList([nn.Parameter(torch.zeros(2, 4))])
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.gamma = nn.Parameter(torch.ones(1, 4, 1, 1))  # a layer scale
        self.matrix = nn.Parameter(torch.zeros(4, 4))
        self.weight = nn.Parameter(torch.zeros(1, 4, 3))  # of a convolution with one channel
        self.bag = nn.EmbeddingBag(5, 4)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.patch_embed = nn.Conv2d(3, 4, 2)  # a kernel, whatever the name of its module
        self.score = nn.Linear(4, 1)  # one output: a matrix of one row
        self.scaled = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.bounded = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))


USERS_WEIGHTS = {
    *("matrix", "weight", "attention.in_proj_weight", "attention.out_proj.weight", "patch_embed.weight"),
    *("score.weight", "scaled.parametrizations.weight.original1", "bounded.parametrizations.weight.original"),
}


def test_of_a_users_own_parameters_the_matrices_and_kernels_alone_decay():
    model = _Users()
    decays = _decays(model, parameter_groups(model, 0.3))
    assert {name for name, decay in decays.items() if decay} == USERS_WEIGHTS


def test_positions_of_a_module_that_is_no_class_of_its_own_do_not_decay():
    model = _Tower()
    decays = _decays(model, parameter_groups(model, 0.3))
    assert decays["encoder.positions"] == 0.0
    assert decays["embedding.weight"] == 0.3  # a convolution, whatever its name


def test_muon_takes_no_token_or_magnitude_for_a_matrix():
    model = _Users()
    matrices = _in_groups(model, parameter_groups(model, 0.3, matrices_apart=True), "matrices")
    assert {name for name, is_matrix in matrices.items() if is_matrix} == USERS_WEIGHTS - {
        "bounded.parametrizations.weight.original"  # the last linear layer
    }


@pytest.mark.parametrize("penalty", [L1(1.0), L2(1.0), ElasticNet(1.0)])
@pytest.mark.parametrize("make", [_Everything, _Users, _Tower])
def test_a_penalty_reaches_what_weight_decay_reaches(make, penalty):
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    decays = _decays(model, parameter_groups(model, 0.3))
    penalty.penalty(model).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, decay in decays.items() if decay}


def test_the_magnitude_of_the_older_weight_norm_does_not_decay():
    with pytest.warns(FutureWarning):
        model = nn.utils.weight_norm(nn.Linear(4, 4))
    decays = _decays(model, parameter_groups(model, 0.3))
    assert decays == {"bias": 0.0, "weight_g": 0.0, "weight_v": 0.3}


def test_a_checkpoint_from_when_tokens_decayed_is_refused_with_what_to_type():
    model = _Users()
    task = SimpleNamespace(model=model, make_optimizer=partial(torch.optim.SGD, weight_decay=0.1, lr=0.1))
    task.make_groups = parameter_groups

    def saved(*lengths):
        return {"optimizer_states": [{"param_groups": [{"params": [*range(length)]} for length in lengths]}]}

    decayed, total = len(USERS_WEIGHTS), len(list(model.parameters()))
    check_groups(saved(decayed, total - decayed), task)
    with pytest.raises(ConfigError) as caught:
        check_groups(saved(decayed + 4, total - decayed - 4), task, "runs/a/last.ckpt")
    assert str(caught.value) == (
        "The checkpoint runs/a/last.ckpt must have the optimizer's groups of parameters, but they have "
        f"{decayed + 4} and {total - decayed - 4} where this version makes {decayed} and {total - decayed}: class "
        "tokens, positions and embedding bags of your own no longer decay. Name the "
        "run's folder by repeat= to run it again from its beginning."
    )


# ---- rules


@pytest.mark.parametrize(
    ("rule", "matched"),
    [
        ({"match": "head.*"}, {"head.weight"}),
        ({"match": "head"}, {"head.weight"}),
        ({"match": "*.bias"}, {"linear.bias", "norm.bias", "conv.bias", "batch_norm.bias"}),
        ({"match": "*norm"}, {"norm.weight", "norm.bias", "batch_norm.weight", "batch_norm.bias"}),
        ({"type": "Conv2d"}, {"conv.weight", "conv.bias"}),
        ({"type": "Linear"}, {"linear.weight", "linear.bias", "head.weight"}),
        ({"type": "_BatchNorm"}, {"batch_norm.weight", "batch_norm.bias"}),  # by what it inherits from
        ({"type": "Linear", "match": "*.bias"}, {"linear.bias"}),
    ],
)
def test_a_rule_multiplies_the_lr_of_what_it_matches(rule, matched):
    model = _Everything()
    rates = _rates(model, rules=[rule | {"lr": 0.25}])
    assert rates == {name: 0.25 if name in matched else None for name, _ in model.named_parameters()}


def test_a_rule_for_a_module_holds_for_all_that_is_in_it():
    model = _Tower()
    rates = _rates(model, rules=[{"match": "encoder.blocks.1", "lr": 0.5}])
    assert {name for name, rate in rates.items() if rate} == {
        name for name, _ in model.named_parameters() if name.startswith("encoder.blocks.1.")
    }
    by_type = _rates(model, rules=[{"type": "_Block", "lr": 0.5}])
    assert {name for name, rate in by_type.items() if rate} == {
        name for name, _ in model.named_parameters() if ".blocks." in name
    }


def test_the_multipliers_of_several_rules_multiply():
    model = _Everything()
    rules = [{"type": "Linear", "lr": 0.5, "weight_decay": 4.0}, {"match": "head.*", "lr": 0.1}]
    groups = parameter_groups(model, 0.1, 2.0, rules=rules)
    rates, decays = _in_groups(model, groups, "lr"), _decays(model, groups)
    assert rates["linear.weight"] == pytest.approx(2.0 * 0.5)
    assert rates["head.weight"] == pytest.approx(2.0 * 0.5 * 0.1)
    assert decays["linear.weight"] == decays["head.weight"] == pytest.approx(0.4)
    assert decays["conv.weight"] == 0.1
    assert decays["linear.bias"] == 0.0  # what does not decay still does not


def test_a_rule_can_take_the_weight_decay_away():
    model = _Everything()
    decays = _decays(model, parameter_groups(model, 0.3, rules=[{"match": "head", "weight_decay": 0.0}]))
    assert {name for name, decay in decays.items() if decay} == DECAYED - {"head.weight"}


def test_there_is_a_group_for_each_rule_and_not_for_each_tensor():
    # per-tensor groups made AdamW 2.4 times slower
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(50)))
    assert len(parameter_groups(model, 0.1, 1.0)) == 2
    assert len(parameter_groups(model, 0.1, 1.0, rules=[{"match": "[0-9].*", "lr": 0.1}])) == 4


def test_every_group_has_a_name_of_its_own():
    rules = [{"match": "head.*", "lr": 0.1}, {"type": "Linear", "lr": 0.5}, {"type": "Linear", "weight_decay": 0.5}]
    names = _names(_Everything(), rules=rules, layer_decay=0.9, matrices_apart=True)
    assert len(names) == len(set(names))
    assert "decayed/rest/head.*/Linear/layer3" in names
    assert _names(_Everything(), rules=rules[:1]) == ["decayed", "decayed/head.*", "undecayed"]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            {"match": "haed.*", "lr": 0.1},
            "`parameter_groups.rules` must each match a parameter of the model, got match: haed.*. Did you mean head? "
            "It has class_token, embedding, linear, norm, slope, conv, batch_norm, head.",
        ),
        (
            {"type": "Conv2D", "lr": 0.1},
            "`parameter_groups.rules` must each match a parameter of the model, got type: Conv2D. "
            "Did you mean Conv2d? It has BatchNorm2d, Conv2d, Embedding, LayerNorm, Linear, PReLU.",
        ),
    ],
)
def test_a_rule_that_matches_nothing_is_refused_with_what_was_probably_meant(rule, said):
    with pytest.raises(ConfigError) as caught:
        parameter_groups(_Everything(), 0.1, 1.0, rules=[rule])
    assert str(caught.value) == said


def test_rules_that_match_only_apart_are_refused_together():
    with pytest.raises(ConfigError, match=r"got match: conv\.\*, type: Linear\."):
        parameter_groups(_Everything(), 0.1, 1.0, rules=[{"match": "conv.*", "type": "Linear", "lr": 0.1}])


def test_a_rule_may_be_for_what_is_frozen():
    model = _Everything()
    model.head.requires_grad_(False)
    assert len(parameter_groups(model, 0.1, 1.0, rules=[{"match": "head.*", "lr": 0.1}])) == 2


def test_a_multiplier_needs_an_lr_to_multiply():
    with pytest.raises(ConfigError, match=r"must not multiply the lr of an optimizer whose file has none\."):
        parameter_groups(_Everything(), 0.1, None, rules=[{"match": "head.*", "lr": 0.1}])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rules=[{match:head.*}]", "must each have match or type, and lr or weight_decay, got match: head.*."),
        ("rules=[{lr:0.1}]", "must each have match or type, and lr or weight_decay, got lr: 0.1."),
        ("rules=[{}]", "must each have match or type, and lr or weight_decay, got nothing."),
        (
            "rules=[{match:head.*,lr:0.1,decay:0}]",
            "must each have match or type, and lr or weight_decay, got match: head.*, lr: 0.1, decay: 0. "
            "Try 'parameter_groups.rules=[{match:head.*,lr:0.1}]'.",
        ),
        ("rules=[{match:head.*,lr:-1}]", "`parameter_groups.rules` must be at least 0, got -1."),
        ("layer_decay=0", "`parameter_groups.layer_decay` must be greater than 0, got 0. Try parameter_groups.layer"),
        ("layer_decay=1.1", "`parameter_groups.layer_decay` must be at most 1, got 1.1."),
    ],
)
def test_a_rule_that_is_not_one_is_refused(words, said, compose):
    with pytest.raises(ConfigError) as caught:
        validate(compose(f"parameter_groups.{words}"))
    assert said in str(caught.value)


def test_what_a_message_proposes_for_rules_is_accepted(compose):
    cfg = compose("parameter_groups.rules=[{match:head.*,lr:0.1}]")
    validate(cfg)
    assert cfg.parameter_groups.rules == [{"match": "head.*", "lr": 0.1}]


# ---- lr by layer


def test_the_lr_of_each_layer_of_a_stack_is_a_share_of_the_one_above():
    model = MLP((8,), 3, width=4, depth=3, activation=nn.PReLU, normalization="layer")
    rates = _rates(model, layer_decay=0.5)
    for level, layer in enumerate(["1", "2", "3"]):
        of_layer = {f"hidden{layer}.weight", f"hidden{layer}.bias", f"norm{layer}.weight", f"activation{layer}.weight"}
        assert {rates[name] for name in of_layer} == {0.5 ** (3 - level)}
    assert rates["head.weight"] is rates["head.bias"] is None  # the lr as it is


def test_each_block_is_a_layer_with_the_embeddings_below_and_the_head_on_top():
    model = _Tower(depth=3)
    rates = _rates(model, layer_decay=0.5)
    assert rates["embedding.weight"] == rates["encoder.positions"] == 0.5**4
    for number in range(3):
        block = {rate for name, rate in rates.items() if f"blocks.{number}." in name}
        assert block == {0.5 ** (3 - number)}
    assert rates["encoder.norm.weight"] == 0.5  # the vectors that follow a layer are its own
    assert rates["head.weight"] is None


def test_an_embedding_of_words_is_the_lowest_layer():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    rates = _rates(model, layer_decay=0.1)
    assert rates["0.weight"] == pytest.approx(0.01)
    assert rates["1.weight"] == rates["2.weight"] == pytest.approx(0.1)
    assert rates["3.weight"] is None


def test_a_layer_decay_of_one_changes_nothing():
    assert _names(_Tower(), layer_decay=1.0) == ["decayed", "undecayed"]
    assert set(_rates(_Tower(), layer_decay=1.0).values()) == {None}


@pytest.mark.parametrize("model", options("model"))
def test_in_each_of_our_models_the_head_learns_fastest_and_the_first_layer_slowest(model, compose):
    built = _model(model, compose)
    rates = {name: rate or 1.0 for name, rate in _rates(built, layer_decay=0.5).items()}
    assert rates["head.weight"] == 1.0
    assert {name for name, rate in rates.items() if rate == 1.0} == {"head.weight", "head.bias"}
    # no layer is left out
    assert set(rates.values()) == {0.5**level for level in range(len(set(rates.values())))}
    assert min(rates, key=rates.get).split(".")[0] in ("hidden1", "conv0", "stem", "embedding", "conv")


def _model(option, compose):
    """A model of the catalogue, built for images if it takes them, or for a table."""
    takes = get_object(compose(f"model={option}").model._target_).kinds
    cfg = complete(compose(f"model={option}", "size=small", f"data={'digits' if 'image' in takes else 'iris'}"))
    data = build(cfg.data)
    data.prepare_data()
    data.setup("fit")
    task = build(cfg.task)
    task.spec = data.spec
    task.configure_model()
    return task.model


# ---- matrices apart


def test_the_matrices_of_hidden_layers_are_set_apart():
    model = _Everything()
    groups = parameter_groups(model, 0.1, matrices_apart=True)
    matrices = _in_groups(model, groups, "matrices")
    assert {name for name, is_matrix in matrices.items() if is_matrix} == {"linear.weight", "conv.weight"}
    assert [group["name"] for group in groups] == ["decayed", "decayed/rest", "undecayed/rest"]


def test_the_last_linear_is_the_output_layer_where_none_is_called_head():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    matrices = _in_groups(model, parameter_groups(model, 0.1, matrices_apart=True), "matrices")
    assert {name for name, is_matrix in matrices.items() if is_matrix} == {"0.weight", "1.weight"}


# ---- a run


def test_a_schedule_keeps_the_ratios_that_the_rules_of_a_recipe_make(fit_with):
    rules = "parameter_groups.rules=[{match:head.*,lr:0.1},{type:Linear,weight_decay:0.5}]"
    schedule = ("scheduler=exponential", "warmup_steps=3", "parameter_groups.layer_decay=0.5")
    fitted = fit_with([], "epochs=2", "size=tiny", rules, *schedule)
    groups = {group["name"]: group for group in fitted.trainer.optimizers[0].param_groups}
    top = max(int(name[-1]) for name in groups)
    first, last = groups["decayed/Linear/layer0"], groups[f"decayed/head.*/Linear/layer{top}"]
    assert last["lr"] / first["lr"] == pytest.approx(0.1 / 0.5**top, rel=1e-9)
    assert first["weight_decay"] == last["weight_decay"] == pytest.approx(0.005)


def test_a_rule_for_nothing_is_refused_before_the_first_step(fit):
    with pytest.raises(ConfigError, match=r"`parameter_groups\.rules` must each match .* Did you mean hidden1"):
        fit("parameter_groups.rules=[{match:hiden1,lr:0.1}]", "epochs=1", "trainer.enable_progress_bar=false")
