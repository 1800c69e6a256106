"""Stacks: together as if alone, Gram loss = plain loss, exact resume, planted dictionaries."""

import copy
from dataclasses import replace

import pytest
import torch

from delta_transcoders.dictionaries.convergence import MEASURES, ConvergenceTracker
from delta_transcoders.dictionaries.sparsity import SparsityConfig
from delta_transcoders.dictionaries.stack import DictionaryStack, Variant

D_IN, D_OUT, TOKENS = 12, 10, 64
SHAPE = {"d_in": D_IN, "d_out": D_OUT, "seed": 3}
# Two layers of x, three targets; in order and even for x, uneven for the targets.
VARIANTS = [
    Variant("layer_0/p0.25", layer=0, target=0, l0=2),
    Variant("layer_0/p0.5", layer=0, target=1, l0=3),
    Variant("layer_1/p0.25", layer=1, target=2, l0=2),
    Variant("layer_1/p0.5", layer=1, target=2, l0=1),
]
DELTA = {"n_features": 6, "sparsity": SparsityConfig()}
RECIPES = {
    "delta": DELTA,
    "jumprelu": {"n_features": 6, "sparsity": SparsityConfig(mode="jumprelu")},
    "original": {
        "n_features": 6,
        "sparsity": SparsityConfig(mode="l1", l1_warmup_steps=10, unit_rows=True),
        "decoder_init": "kaiming",
        "decoder_bias": True,
    },
    "base": {
        "n_features": 16,
        "sparsity": SparsityConfig(),
        "decoder_bias": True,
        "aux_k": 4,
        "dead_after_tokens": 3 * TOKENS,
    },
}


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return (
        torch.randn(2, TOKENS, D_IN, generator=generator),
        torch.randn(3, TOKENS, D_OUT, generator=generator)
        * torch.tensor([1, 5, 0.1])[:, None, None],
    )


def adam(stack: DictionaryStack) -> torch.optim.Adam:
    return torch.optim.Adam(stack.parameters(), lr=1e-2)


def train(stack, optimizer, steps, max_norm=0.05) -> None:
    for step in steps:
        loss = stack.training_loss(*batch(step))
        optimizer.zero_grad()
        loss.total.backward()
        stack.prepare_gradients(max_norm)
        optimizer.step()
        stack.finish_step()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stack_trains_each_variant_as_if_alone(recipe):
    options = {**SHAPE, **RECIPES[recipe]}
    together = DictionaryStack(VARIANTS, **options)
    if recipe != "original":
        together.calibrate(*batch(0))
    train(together, adam(together), range(20))
    for v, variant in enumerate(VARIANTS):
        torch.rand(7)  # the global generator plays no part
        alone = DictionaryStack([variant], **options)
        if recipe != "original":
            alone.calibrate(*batch(0))
        train(alone, adam(alone), range(20))
        for name, tensor in alone.state_dict().items():
            if name != "_extra_state":
                ours = together.state_dict()[name][v : v + 1] if tensor.ndim else tensor
                torch.testing.assert_close(ours, tensor, rtol=1e-5, atol=1e-6)
        assert alone.W_dec.abs().max() > 0.01


def test_first_weights_depend_on_seed_and_key_only():
    first = DictionaryStack(VARIANTS, **SHAPE, **DELTA)
    again = DictionaryStack(VARIANTS[::-1], **SHAPE, **DELTA)
    assert torch.equal(first.W_enc, again.W_enc.flip(0))
    assert not torch.equal(first.W_enc[0], first.W_enc[1])
    other = DictionaryStack(VARIANTS, **{**SHAPE, "seed": 4}, **DELTA)
    assert not torch.equal(first.W_enc, other.W_enc)
    torch.testing.assert_close(first.W_enc.norm(dim=2), torch.ones(4, 6))


@pytest.mark.parametrize("target_V", [(0, 1, 2, 2), (0, 0, 1, 1), (1, 0, 2, 0)])
def test_gram_loss_equals_plain_loss_in_value_and_gradient(target_V):
    variants = [replace(v, target=t) for v, t in zip(VARIANTS, target_V, strict=True)]
    stack = DictionaryStack(variants, **SHAPE, **DELTA).double()
    x, targets = (t.double() for t in batch(0))
    targets = targets[: max(target_V) + 1]
    stack.calibrate(x, targets)
    torch.nn.init.normal_(stack.W_dec)
    a = stack._preactivations(x).relu().detach().requires_grad_()
    results = []
    for loss in (stack._gram_loss, stack._plain_loss):
        values = loss(a, targets)
        results.append((values, *torch.autograd.grad(values.sum(), [a, stack.W_dec])))
    for gram, plain in zip(*results, strict=True):
        torch.testing.assert_close(gram, plain)


def test_loss_starts_at_one_and_the_encoder_waits_for_the_decoder():
    stack = DictionaryStack(VARIANTS, **SHAPE, **DELTA)
    x, targets = batch(0)
    stack.calibrate(x, targets)
    loss = stack.training_loss(x, targets)
    torch.testing.assert_close(loss.reconstruction_V, torch.ones(4))
    torch.testing.assert_close(loss.l0_V, torch.tensor([2.0, 3, 2, 1]))
    loss.total.backward()
    assert (stack.W_enc.grad == 0).all()
    assert (stack.W_dec.grad != 0).any()


def test_clipping_is_per_variant():
    stack = DictionaryStack(VARIANTS, **SHAPE, **DELTA)
    for parameter in stack.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.grad[1] = 1e-4
    stack.prepare_gradients(max_norm=0.5)
    squares = sum(p.grad.flatten(1).square().sum(1) for p in stack.parameters())
    torch.testing.assert_close(squares.sqrt()[[0, 2, 3]], torch.full((3,), 0.5), rtol=1e-4, atol=0)
    assert (stack.W_enc.grad[1] == 1e-4).all()


def test_unit_rows_stay_unit_and_their_gradient_tangent():
    stack = DictionaryStack(VARIANTS, **SHAPE, **RECIPES["original"])
    train(stack, adam(stack), range(5))
    torch.testing.assert_close(stack.W_dec.norm(dim=2), torch.ones(4, 6))
    stack.training_loss(*batch(5)).total.backward()
    stack.prepare_gradients()
    assert (stack.W_dec.grad * stack.W_dec).sum(2).abs().max() < 1e-6


@pytest.mark.parametrize("recipe", RECIPES)
def test_resume_from_state_dict_is_exact(recipe):
    options = {**SHAPE, **RECIPES[recipe]}
    whole = DictionaryStack(VARIANTS, **options)
    optimizer = adam(whole)
    train(whole, optimizer, range(6))
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    train(whole, optimizer, range(6, 12))

    resumed = DictionaryStack(VARIANTS, **{**options, "seed": 99})
    resumed_optimizer = adam(resumed)
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    train(resumed, resumed_optimizer, range(6, 12))
    for name, tensor in whole.state_dict().items():
        assert name == "_extra_state" or torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_checkpoint_of_other_variants_is_refused():
    stack = DictionaryStack(VARIANTS, **SHAPE, **DELTA)
    reordered = DictionaryStack(VARIANTS[::-1], **SHAPE, **DELTA)
    with pytest.raises((ValueError, RuntimeError), match="checkpoint holds the variants"):
        reordered.load_state_dict(stack.state_dict())


@pytest.mark.parametrize("recipe", RECIPES)
def test_encode_and_decode_are_those_of_the_exported_transcoder(recipe):
    stack = DictionaryStack(VARIANTS, **SHAPE, **RECIPES[recipe])
    if recipe != "original":
        stack.calibrate(*batch(0))
    train(stack, adam(stack), range(30), max_norm=None)
    x, _ = batch(100)
    a_VFB = stack.encode(x)
    for v, variant in enumerate(VARIANTS):
        exported = stack.export(v)
        a_BF = exported.encode(x[variant.layer])
        torch.testing.assert_close(a_VFB[v].T, a_BF)
        torch.testing.assert_close(stack.decode(v, a_VFB[v]), exported.decode(a_BF))
        assert 0.3 * variant.l0 < (a_BF > 0).sum() / TOKENS or recipe == "original"


def planted(n_tokens: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """r = Σ of a few of 8 planted features, at a scale of 0.01; x carries them linearly."""
    fixed = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(16, 8, generator=fixed))[0].T
    rows = torch.randn(8, 12, generator=fixed) * 0.01
    active = torch.rand(n_tokens, 8, generator=generator) < 0.15
    a = active * (2 + torch.rand(n_tokens, 8, generator=generator))
    x = a @ directions + 0.02 * torch.randn(n_tokens, 16, generator=generator)
    return x[None], (a @ rows)[None]


def train_on_planted(stack: DictionaryStack, steps: int) -> tuple[float, float]:
    """FVU and L0 after training, on fresh tokens."""
    generator = torch.Generator().manual_seed(1)
    stack.calibrate(*planted(512, generator))
    optimizer = torch.optim.Adam(stack.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = stack.training_loss(*planted(512, generator))
        optimizer.zero_grad()
        loss.total.backward()
        stack.prepare_gradients()
        optimizer.step()
        stack.finish_step()
    x, r = planted(4096, generator)
    a_VFB = stack.encode(x)
    variance = (r - r.mean(1, keepdim=True)).square().sum()
    error = (r[0] - stack.decode(0, a_VFB[0])).square().sum()
    return float(error / variance), int((a_VFB > 0).sum()) / 4096


@pytest.mark.parametrize("mode", ["batch_topk", "jumprelu"])
def test_a_planted_sparse_dictionary_is_found(mode):
    stack = DictionaryStack(
        [Variant("planted", 0, 0, l0=1.3)],
        d_in=16,
        d_out=12,
        n_features=10,
        sparsity=SparsityConfig(mode=mode),
        seed=0,
    )
    fvu, l0 = train_on_planted(stack, 500)
    assert fvu < 0.1
    assert l0 < 2


def test_dead_features_come_back_with_the_auxiliary_loss():
    alive, fvus = [], []
    for aux_k in (0, 4):
        stack = DictionaryStack(
            [Variant("planted", 0, 0, l0=1.3)],
            d_in=16,
            d_out=12,
            n_features=16,
            sparsity=SparsityConfig(),
            seed=1,
            aux_k=aux_k,
            dead_after_tokens=5 * 512,
        )
        stack.b_enc.data[:, 4:] = -1.5  # these do fire, but seldom among the largest
        fvus.append(train_on_planted(stack, 200)[0])
        x, _ = planted(4096, torch.Generator().manual_seed(9))
        alive.append((stack.encode(x) > 0).any(2).sum().item())
    assert alive[1] > alive[0]
    assert fvus[1] < fvus[0]


def test_without_dead_features_the_auxiliary_loss_is_none():
    with_aux, without = (
        DictionaryStack(VARIANTS, **SHAPE, **DELTA, aux_k=aux_k) for aux_k in (2, 0)
    )
    for stack in (with_aux, without):
        train(stack, adam(stack), range(5))
    assert torch.equal(with_aux.W_enc, without.W_enc)
    assert with_aux.idle_VF.max() < with_aux.dead_after_tokens


def measured(fvus: list[float]) -> dict[str, torch.Tensor]:
    """Measures of a validation: the FVUs, and multiples of them for the others."""
    return {name: i * torch.tensor(fvus).double() for i, name in enumerate(MEASURES, start=1)}


def test_tracker_keeps_the_best_of_each_variant_and_stops_it_alone():
    stack = DictionaryStack(VARIANTS[:3], **SHAPE, **DELTA)
    tracker = ConvergenceTracker(stack, patience=2)
    with pytest.raises(RuntimeError, match="no validation"):
        tracker.export(0)
    history = [  # variant 0 stops at the second bad one, 1 keeps improving, 2 is never finite
        [0.9, 0.9, float("nan")],
        [0.8, 0.8, float("nan")],
        [0.85, 0.9, float("nan")],
        [0.80, 0.7, float("nan")],
        [0.10, 0.6, float("nan")],
    ]
    for step, fvu in enumerate(history):
        stack.b_enc.data.fill_(step)
        improved = tracker.update(measured(fvu), stack)
        if step == 3:  # through a checkpoint in the middle
            restored = ConvergenceTracker(stack, patience=2)
            restored.load_state_dict(tracker.state_dict())
            tracker = restored
    assert improved.tolist() == [False, True, False]
    assert tracker.converged_V.tolist() == [True, False, True]
    assert tracker.best_fvu_V[:2].tolist() == pytest.approx([0.8, 0.6])
    best = {name: i * 0.6 for i, name in enumerate(MEASURES, start=1)}
    assert tracker.best(1) == pytest.approx(best)
    assert tracker.export(0).b_enc.tolist() == [1] * 6
    assert tracker.export(1).b_enc.tolist() == [4] * 6


def test_a_variant_with_nan_weights_is_never_the_best():
    stack = DictionaryStack(VARIANTS[:2], **SHAPE, **DELTA)
    tracker = ConvergenceTracker(stack, patience=2)
    stack.W_enc.data[1, 0, 0] = torch.nan  # the feature is silent, and the FVU finite
    assert tracker.update(measured([0.9, 0.9]), stack).tolist() == [True, False]
    assert tracker.best_fvu_V.isfinite().tolist() == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": []}, "one distinct key"),
        ({"variants": [VARIANTS[0]] * 2}, "one distinct key"),
        ({"decoder_init": "tied"}, "d_in = d_out"),
        ({"decoder_init": "ones"}, "decoder_init is 'ones'"),
        ({"aux_k": 7}, "aux_k is 7"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DictionaryStack(**{"variants": VARIANTS, **SHAPE, **DELTA, **options})


def test_missing_inputs_are_named():
    stack = DictionaryStack(VARIANTS, **SHAPE, **DELTA)
    x, targets = batch(0)
    with pytest.raises(ValueError, match="reads input 1, the batch has 1"):
        stack.training_loss(x[:1], targets)
