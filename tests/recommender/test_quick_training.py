"""Quicker training steps against RecBole's own: the same random numbers, masks, losses and gradients."""

import pytest
import torch
from recbole.model.layers import FeedForward
from synthetic_data import write_toy_dataset
from torch import nn

from recbole_llara.config.models import stock_models
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.recommender.quick_training import draws_alike, quick_training
from recbole_llara.recommender.stock import make_recommender, stock_trainer

SASRec = stock_models()["SASRec"]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A stock model on the toy data, its data and its trainer, always with the same first weights."""
    monkeypatch.chdir(tmp_path)
    toy = write_toy_dataset(tmp_path)

    def built(name, **keys):
        config = RunConfig(name, "toy", config_dict={**toy, "train_batch_size": 32, "eval_step": 0, **keys})
        data = prepare_data(config)
        torch.manual_seed(3)
        model = make_recommender(name, config, data.dataset)
        return model, data, stock_trainer(config, model)

    return built


def step(model, batch, is_quick):
    """The loss of a batch, the gradients by name, and where the generator ends."""
    model.train()
    model.zero_grad()
    torch.manual_seed(5)
    if is_quick:
        with quick_training(model):
            loss = model.calculate_loss(batch)
    else:
        loss = model.calculate_loss(batch)
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.detach(), gradients, torch.get_rng_state()


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_is_torchs_bit_for_bit(p):
    """Also of tensors whose numbers do not lie in their order, which torch draws in the order of memory."""
    dropout, x = nn.Sequential(nn.Dropout(p)), torch.randn(7, 5, 3)
    for values in (x, x.transpose(0, 2), x.double(), x[:, :, 1]):
        torch.manual_seed(1)
        expected, state = dropout(values), torch.get_rng_state()
        torch.manual_seed(1)
        with quick_training(dropout):
            assert torch.equal(dropout(values), expected)
        assert torch.equal(torch.get_rng_state(), state)
    with quick_training(dropout.eval()):
        assert torch.equal(dropout(x), x)


@pytest.mark.parametrize(
    "keys", [{}, {"n_layers": 1}, {"n_layers": 3, "n_heads": 1}, {"loss_type": "BPR"}, {"hidden_act": "relu"}], ids=str
)
def test_sasrec_learns_the_same(keys, make):
    """In float64, where rounding leaves 12 digits: every loss and gradient, of histories from one item to all eight."""
    negatives = (
        {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "dynamic": False}} if "loss_type" in keys else {}
    )
    model, data, _ = make("SASRec", MAX_ITEM_LIST_LENGTH=8, **keys, **negatives)
    model = model.double()
    lengths = set()
    for batch in data.train_data:
        lengths |= set(batch[model.ITEM_SEQ_LEN].tolist())
        loss, gradients, state = step(model, batch, is_quick=False)
        quick_loss, quick_gradients, quick_state = step(model, batch, is_quick=True)
        assert torch.equal(quick_state, state)
        torch.testing.assert_close(quick_loss, loss, rtol=1e-10, atol=0)
        assert quick_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(quick_gradients[name], gradient, rtol=1e-6, atol=1e-8, msg=name)
    assert lengths == set(range(1, 9))


def test_sasrec_draws_the_same_where_torch_draws_otherwise(make, monkeypatch):
    """Where ``bernoulli_`` has numbers of its own, as under MKL, the masks are still those that it would draw."""
    monkeypatch.setattr("recbole_llara.recommender.quick_training.draws_alike", lambda: False)
    model, data, _ = make("SASRec")
    batch = next(iter(data.train_data))
    loss, _, state = step(model, batch, is_quick=False)
    quick_loss, _, quick_state = step(model, batch, is_quick=True)
    assert torch.equal(quick_state, state)
    torch.testing.assert_close(quick_loss, loss)


@pytest.mark.parametrize("name", ["GRU4Rec", "Caser", "NARM"])
def test_other_models_are_trained_to_the_same_weights_bit_for_bit(name, make, monkeypatch):
    def trained():
        model, data, trainer = make(name, epochs=2)
        torch.manual_seed(9)
        trainer.fit(data.train_data, data.valid_data, saved=False, verbose=False)
        return model.state_dict()

    quick = trained()
    monkeypatch.setattr("recbole_llara.recommender.quick_training._quicker", lambda module: {})
    plain = trained()
    assert all(torch.equal(quick[key], plain[key]) for key in plain)


def test_the_trainer_trains_sasrec_by_it(make, monkeypatch):
    """An epoch of the trainer is an epoch of RecBole's up to rounding, and the model has RecBole's methods afterwards."""

    def trained():
        model, data, trainer = make("SASRec", epochs=1)
        torch.manual_seed(9)
        trainer.fit(data.train_data, data.valid_data, saved=False, verbose=False)
        return model, trainer.train_loss_dict[0]

    model, loss = trained()
    assert not any("forward" in vars(module) for module in model.modules())
    blocks = [module for module in model.modules() if isinstance(module, FeedForward)]
    assert all(block.intermediate_act_fn == block.gelu for block in blocks)
    monkeypatch.setattr("recbole_llara.recommender.quick_training._quicker", lambda module: {})
    plain, plain_loss = trained()
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert not torch.equal(model.item_embedding.weight, plain.item_embedding.weight), (
        "the trainer did not take the quicker steps"
    )


def test_a_model_with_a_forward_pass_of_its_own_keeps_it():
    class Doubled(SASRec):
        def forward(self, item_seq, item_seq_len):
            return 2 * super().forward(item_seq, item_seq_len)

    model = Doubled.__new__(Doubled)
    nn.Module.__init__(model)
    with quick_training(model):
        assert "forward" not in vars(model)


def test_an_error_within_puts_the_methods_back(make):
    model, _, _ = make("SASRec")
    with pytest.raises(KeyboardInterrupt), quick_training(model):
        assert "forward" in vars(model)
        raise KeyboardInterrupt
    assert not any("forward" in vars(module) for module in model.modules())


def test_whether_draws_are_alike_is_found_without_touching_the_generator():
    state = torch.get_rng_state()
    draws_alike.cache_clear()
    assert draws_alike() in (True, False)
    assert torch.equal(torch.get_rng_state(), state)
