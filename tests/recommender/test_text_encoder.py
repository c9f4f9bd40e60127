"""Titles as vectors: pooled over the right tokens, whatever stands beside them, and made once."""

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

from recbole_llara.recommender.morec import TextEncoder, cached_features, encode_all
from recbole_llara.utils.errors import UserError

TEXTS = ["Title 3 é", "A", "Title 41 é and so on"]


@pytest.fixture
def bert(tmp_path, make_tokenizer):
    """A folder with a small BERT and a tokenizer with a CLS token."""
    tokenizer = make_tokenizer(TEXTS, 300)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, cls_token="<s>", pad_token="</s>")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, initializer_range=0.4
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    wrapped.save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


@pytest.fixture(params=["tiny", "bert"])
def encoder(request):
    path = request.param if request.param == "tiny" else request.getfixturevalue("bert")
    return TextEncoder(path, "mean").eval()


@torch.no_grad()
def test_features_are_the_mean_over_a_title_s_tokens_alone(encoder):
    found = encode_all(encoder, encoder.tokenise(TEXTS, 64), batch_size=2)
    for row, text in enumerate(TEXTS):
        ids = encoder.tokenizer(text, return_tensors="pt")["input_ids"]
        states = encoder.model(input_ids=ids).last_hidden_state[0]
        assert torch.allclose(found[row], states.mean(0), atol=1e-5)
    assert found.shape == (3, encoder.width)


@torch.no_grad()
def test_cls_is_the_first_state_and_needs_a_cls_token(bert):
    encoder = TextEncoder(bert, "cls").eval()
    titles = encoder.tokenise(TEXTS, 64)
    states = encoder.model(input_ids=titles.input_ids, attention_mask=titles.attention_mask).last_hidden_state
    assert torch.allclose(encode_all(encoder, titles, 2), states[:, 0], atol=1e-5)
    with pytest.raises(UserError, match="text_pooling: found cls"):
        TextEncoder("tiny", "cls")


def test_features_are_made_once_for_the_same_encoder_pooling_and_titles(bert, tmp_path, monkeypatch):
    encoder = TextEncoder(bert, "mean")
    titles = encoder.tokenise(TEXTS, 64)
    first = cached_features(encoder, titles, 2, tmp_path / "features")
    passes = []
    monkeypatch.setattr(TextEncoder, "forward", lambda self, titles: passes.append(1) or torch.zeros(len(titles.input_ids), 16))
    assert torch.equal(cached_features(encoder, titles, 2, tmp_path / "features"), first) and not passes
    cached_features(encoder, encoder.tokenise(TEXTS[:2], 64), 2, tmp_path / "features")
    assert passes
    with torch.no_grad():
        next(encoder.model.parameters()).add_(1)
    assert torch.equal(cached_features(encoder, titles, 2, tmp_path / "features"), torch.zeros(3, 16))


@pytest.mark.parametrize("damage", [lambda content: content[:-7], lambda content: content[:-1] + b"x", lambda content: b"{}"])
def test_damaged_features_are_made_again_with_a_warning(bert, tmp_path, damage, caplog):
    encoder = TextEncoder(bert, "mean")
    titles = encoder.tokenise(TEXTS, 64)
    first = cached_features(encoder, titles, 2, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert torch.equal(cached_features(encoder, titles, 2, tmp_path), first)
    assert f"The cached text features {path} are damaged" in caplog.text and path.read_bytes() == whole


def test_what_is_no_text_encoder_is_refused(tmp_path, make_tokenizer):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    make_tokenizer(TEXTS, 300).save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="ViTModel of .* gives no states"):
        TextEncoder(str(tmp_path / "vit"), "mean")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no text encoder can be read there"):
        TextEncoder(str(tmp_path / "empty"), "mean")
