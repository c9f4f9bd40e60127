"""What of an LLM's states of a text tells most of an item that a recommender never learned: how deep, and behind which words.

    python tests/benchmarks/bench_text_states.py --llm_path=smollm2 [--dataset=lastfm --data_path=dataset] [--key=value ...]

Under ``protocol: cold_items`` the recommender learns from no interaction with the held-out items. A ridge regression from texts to its vectors,
fitted on the learned items, gives each of them a vector; the recommender then ranks the 20 candidates of every row by these alone, without
an LLM's answer. The validation rows, which ask for other held-out items than the test rows, are what depth and words were chosen by.
"""

import logging
import sys
from collections.abc import Sequence

import torch

from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.data.dataset import prepare_data
from recbole_llara.evaluator.significance import wilson_interval
from recbole_llara.llm.architecture import embedded_vocabulary
from recbole_llara.llm.text_states import DEPTH, text_states
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.build import build_model
from recbole_llara.prompt.tokens import tokenise_inside
from recbole_llara.recommender.new_items import FUNCTIONS, TextFeatures, fitted_on

KEYS = {
    "protocol": "cold_items",
    "rec_eval_step": 0,
    "rec_epochs": 6,
    "new_item_token": "own",
    "user_token": True,
    "show_progress": False,
}
BEGINNINGS = {"nothing": "", "Title:": "Title:", "I like": "I like"}
DEPTHS = (1 / 6, DEPTH, 1 / 2, 2 / 3, 5 / 6)


def mean_embeddings(model: LLMRecommender, texts: Sequence[str]) -> torch.Tensor:
    """[n, D] the mean of the LLM's input embeddings of each text's tokens."""
    vocabulary = embedded_vocabulary(model.llm).float().cpu()
    tokens = tokenise_inside(model.tokenizer, [f" {text}" if text else "" for text in texts])
    return torch.stack([vocabulary[of_text].mean(0) if of_text else vocabulary[0] * 0 for of_text in tokens])


@torch.no_grad()
def asked(model: LLMRecommender, loader: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the rows the recommender's output for the history [B, d], the candidates [B, C] and the target's column [B]."""
    _, network, own = model.answering
    outputs, candidates, columns = [], [], []
    for interaction, *_ in loader:
        questions = model._questions(interaction)
        history = questions.history
        padded = torch.nn.functional.pad(history, (0, own["MAX_ITEM_LIST_LENGTH"] - history.shape[1]))
        outputs.append(network(padded, (history > 0).sum(1)))
        candidates.append(questions.candidates)
        columns.append((questions.candidates == interaction[model.POS_ITEM_ID][:, None]).int().argmax(1))
    return torch.cat(outputs), torch.cat(candidates), torch.cat(columns)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    keys = {**KEYS, **parse_arguments(sys.argv[1:])}
    config = RunConfig("LLaRA", keys.pop("dataset", "ml-100k"), config_dict={**keys, "use_gpu": False})
    data = prepare_data(config)
    model = build_model(config, data).eval()
    recommender, _, _ = model.answering
    texts, learned = data.catalogue.texts(), fitted_on(recommender.is_new)
    splits = {"validation": asked(model, data.valid_data), "test": asked(model, data.test_data)}
    sys.stdout.write(f"{config['dataset']}, {config['llm_path']}: {len(learned)} of {len(texts) - 1} items are fitted on\n")

    def measure(name: str, of_texts: torch.Tensor) -> None:
        features = TextFeatures(
            lambda asked_for: of_texts[[int(text) for text in asked_for]], [str(item) for item in learned.tolist()]
        )
        every = features([str(item) for item in range(len(texts))])
        told = [f"{name:38}"]
        for kind, function in FUNCTIONS.items():
            table = function(features.of_learned, recommender.item_embeddings[learned], config["new_item_neighbours"])(
                every
            ).float()
            for split, (outputs, candidates, columns) in splits.items():
                hits = torch.einsum("bd,bcd->bc", outputs, table[candidates]).argmax(1) == columns
                hit = wilson_interval(int(hits.sum()), len(hits))
                told.append(f"{kind}, {split} {hit.share:.3f} [{hit.low:.3f}, {hit.high:.3f}]")
        sys.stdout.write("  ".join(told) + "\n")
        sys.stdout.flush()

    measure("input embeddings", mean_embeddings(model, texts))
    own = {"the prompt's words": model.encoder.beginning}
    others = {
        name: model.tokenizer(words)["input_ids"] or model.tokenizer("a")["input_ids"] for name, words in BEGINNINGS.items()
    }
    for name, beginning in (own | others).items():
        for depth in DEPTHS if name in own else (DEPTH,):
            measure(
                f"{name}, {depth:.2f} of the blocks", text_states(model.llm, model.tokenizer, beginning, texts, depth=depth)
            )


if __name__ == "__main__":
    main()
