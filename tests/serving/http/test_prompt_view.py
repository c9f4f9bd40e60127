"""A prompt as it is shown is the prompt that the LLM reads: its text, with a mark for every vector."""

import pytest
import torch

from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.representation import REPRESENTATIONS, SLOT_PARTS, Part
from recbole_llara.prompt.template import load_templates
from recbole_llara.serving.catalogue import ItemNames
from recbole_llara.serving.http.compared import prompt_views

TITLES = ["", "Crème brûlée", "[ItemEmb] <b>bold</b>", "星", "M, the film (1931)", "a  b", "</s>"]
IDS = ["[PAD]", *(f"x{item}" for item in range(1, len(TITLES)))]


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_the_view_is_the_template_with_a_mark_for_every_vector(name, make_tokenizer):
    representation = REPRESENTATIONS[name]
    templates = load_templates("movie", 3)
    tokenizer = make_tokenizer([*TITLES, *(" ".join(template.segments) for template in templates)], 600)
    encoder = PromptEncoder(tokenizer, TITLES, templates)
    history, candidates = torch.tensor([[1, 2, 0], [3, 4, 5]]), torch.tensor([[3, 4, 6], [1, 2, 6]])
    prompts = encoder.encode(history, candidates, None, representation, torch.tensor([0, 1]))
    views = prompt_views(tokenizer, prompts, ItemNames(IDS, TITLES))

    def spelt(item):
        texts = {Part.TITLE: " " + TITLES[item], Part.INDEX: f" {item}"}
        own = {Part.ITEM_EMBEDDING, Part.ITEM_ID}
        marks = {part: f"⟨{part.value}{' ' + IDS[item] if part in own else ''}⟩" for part in SLOT_PARTS}
        return "".join({**texts, **marks}[part] for part in representation.parts)

    for row, view in enumerate(views):
        shown = "".join(
            segment.get("text") or f"⟨{segment['part']}{' ' + segment['item_id'] if segment['item_id'] else ''}⟩"
            for segment in view["segments"]
        )
        assert shown == _joined(templates[row], history[row], candidates[row], spelt)
        assert view["tokens"] == int(prompts.attention_mask[row].sum())
        assert sum("part" in segment for segment in view["segments"]) == int((prompts.slot_rows == row).sum())
        assert all(
            segment["title"] == (TITLES[IDS.index(segment["item_id"])] if segment["item_id"] else None)
            for segment in view["segments"]
            if "part" in segment
        )


def _joined(template, history, candidates, spelt):
    lists = {"{history}": history, "{candidates}": candidates}
    return "".join(
        ",".join(spelt(item) for item in lists[segment].tolist() if item) if segment in lists else segment
        for segment in template.segments
    )
