"""Synthetic tasks that teach reading a history, finding the candidate that fits, and copying its title.

Nothing here comes from a user: titles are made up out of catalogue words and random syllables, and item
vectors are random. Three shapes of task:

- *lookup*: a list of items, then queries (a noisy copy of an item's vector, or nothing but its title, which trains
  copying alone), each answered by that item's title: many answers a sequence, which is how copying is learnt fast.
- *readers*: a list of items, then several short made-up histories, each answered by the listed item that fits it: the
  step from looking up to selecting, still with many answers a sequence.
- *selection*: the very prompts of the recommenders (``properties/prompt``), where the target repeats, shares
  its rare words with, or lies close in vector space to the history. Some answer with its title, some with the letter that marks it.

The vectors pass through a projector whose random weights are drawn again for every batch, so that what is learnt
is the comparison of slots and not one projector.
"""

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from recbole_llara.prompt.encoded import EncodedPrompts
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.representation import REPRESENTATIONS, Part
from recbole_llara.prompt.template import load_templates
from recbole_llara.tiny_llama.texts import TITLES_PER_THEME, CatalogueText, make_titles

VECTOR_DIM = 64
MAX_HISTORY = 10
MAX_TITLE_TOKENS = 12
REFRESH = 250  # steps between new titles
MAX_CANDIDATES = 20
# How selections write items, and the same with letters that mark the candidates.
SELECTION = [REPRESENTATIONS[name] for name in ("hybrid", "textual", "text_only")]
LETTERED = [replace(representation, answer=Part.LETTER) for representation in SELECTION]


@dataclass(frozen=True)
class Stage:
    """How hard the tasks of a step are; shares are probabilities."""

    candidate_max: int  # the most candidates a row has
    short_share: float  # a batch's titles are cut to one token
    lookup_share: float  # a lookup batch
    reader_share: float  # a readers batch; the rest are selections
    vector_share: float  # a lookup or readers batch asks by vectors
    closeness: float  # the least correlation of a query's vector with its item's
    history_max: int  # the most items of a history
    hybrid_share: float = 0.65  # a selection batch shows vectors; of the rest 4 in 7 have no slots, 3 placeholders
    text_share: float = 0.25  # only titles tell a hybrid selection's target; both tell it as often
    size_spread: float = 0.0  # standard deviation of the logarithm of a selection's vectors' sizes
    guidance_weight: float = 0.0  # of the losses inside the decoder
    opener_share: float = 0.0  # a made-up title begins with a word that many titles begin with
    letter_share: float = 0.0  # a selection batch answers by letter
    leading_tokens: int = 1  # so many of an answer's first tokens are guided and always count in the loss


@dataclass(frozen=True)
class TaskBatch:
    """One batch of B rows and S slots.

    ``candidate_slots`` is None where candidates have no vectors, ``letters`` where the answers are titles, ``position`` where both are.
    """

    prompts: EncodedPrompts  # with labels
    slot_vectors: torch.Tensor  # [S, VECTOR_DIM], NaN = placeholder
    kind: str  # what it asks
    candidate_slots: torch.Tensor | None = None  # [B, C] which slots are a selection's candidates
    position: torch.Tensor | None = None  # [B] the target's place among the candidates
    letters: torch.Tensor | None = None  # [B, C] the candidates' answers


class TaskMaker:
    """Draws batches of tasks; a batch depends on (seed, step) alone.

    Args:
        tokenizer: the tiny Llama's.
        catalogue: ml-100k's films.
        seed: of every draw.
        themes: title groups in memory at a time.
        tokens: about how many tokens a batch holds.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        catalogue: list[CatalogueText],
        seed: int,
        themes: int = 1500,
        tokens: int = 6000,
    ) -> None:
        self.tokenizer, self.catalogue, self.seed, self.themes, self.tokens = tokenizer, catalogue, seed, themes, tokens
        self._encoders: dict[tuple[int, int, float], PromptEncoder] = {}

    def _generator(self, purpose: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + purpose) * 10_000_019 + number)

    def encoder(self, step: int, title_tokens: int, opener_share: float) -> PromptEncoder:
        """The prompts' encoder over the titles of a step; titles of one token have no openers, which alone name no item."""
        number, opener_share = step // REFRESH, opener_share if title_tokens > 1 else 0.0
        key = number, title_tokens, opener_share
        if key not in self._encoders:
            self._encoders = {other: encoder for other, encoder in self._encoders.items() if other[0] == number}
            titles = make_titles(self.catalogue, self.themes, self._generator(1, number), opener_share)
            domains = ("movie", "game", "artist", "item")
            templates = [template for domain in domains for template in load_templates(domain, MAX_CANDIDATES)]
            shown = (*SELECTION, *LETTERED)
            self._encoders[key] = PromptEncoder(
                self.tokenizer, titles, templates, title_tokens, representations=shown, letters=MAX_CANDIDATES
            )
        return self._encoders[key]

    def batch(self, step: int, stage: Stage) -> TaskBatch:
        """The batch of an optimiser step."""
        generator = self._generator(2, step)
        draw = torch.rand(5, generator=generator).tolist()
        encoder = self.encoder(step, 1 if draw[4] < stage.short_share else MAX_TITLE_TOKENS, stage.opener_share)
        most = stage.candidate_max
        candidate_num = 2 + int(draw[0] * (most - 1)) if draw[1] < 0.5 else most
        by_vector = draw[3] < stage.vector_share
        if draw[2] < stage.lookup_share:
            return self._lookup(encoder, generator, candidate_num, by_vector, stage)
        if draw[2] < stage.lookup_share + stage.reader_share:
            return self._readers(encoder, generator, candidate_num, by_vector, stage)
        return self._selection(encoder, generator, candidate_num, stage)

    def _distinct_items(self, rows: int, count: int, generator: torch.Generator) -> torch.Tensor:
        """[rows, count] items of distinct themes (real-title groups among them)."""
        themes = torch.rand(rows, self.themes, generator=generator).topk(count, dim=1).indices
        return 1 + themes * TITLES_PER_THEME + torch.randint(0, TITLES_PER_THEME, (rows, count), generator=generator)

    def _lookup(
        self, encoder: PromptEncoder, generator: torch.Generator, count: int, by_vector: bool, stage: Stage
    ) -> TaskBatch:
        """Items with slots, then each queried once in another order; the answers are the titles."""
        rows = max(4, self.tokens // (count * (4 + 2 * min(encoder.max_title_tokens, 4)) + 4))
        items = self._distinct_items(rows, count, generator)
        order = torch.rand(rows, count, generator=generator).argsort(1)
        separator, title, slot = _listed(encoder, items).unbind(2)
        mark = slot if by_vector else separator
        listed = torch.stack([separator, title, slot], 2).flatten(1)
        asked = torch.stack([mark, title.gather(1, order), separator], 2).flatten(1)
        pieces = torch.cat([listed, torch.full((rows, 1), encoder.eos_piece), asked], 1)
        in_answer = torch.zeros_like(pieces, dtype=torch.bool)
        in_answer[:, listed.shape[1] + 2 :: 3] = True
        prompts = encoder.assemble(pieces, torch.zeros_like(pieces), in_answer, "right")
        vectors = _vectors(generator, rows, count)
        if by_vector:
            closeness = _closeness(generator, stage.closeness, rows, 1, 1)
            noise = _vectors(generator, rows, count)
            asked_vectors = vectors.gather(1, order[..., None].expand_as(vectors))
            vectors = torch.cat([vectors, _near(asked_vectors, closeness, noise)], 1)
        return TaskBatch(prompts, vectors.flatten(0, 1), f"lookup by {'vector' if by_vector else 'text'}")

    def _readers(
        self, encoder: PromptEncoder, generator: torch.Generator, count: int, by_vector: bool, stage: Stage
    ) -> TaskBatch:
        """Items with slots, then short histories, each answered by the listed item that repeats or lies near in it."""
        readers, length = min(count, 6), 1 + int(torch.randint(0, min(stage.history_max, 4), (1,), generator=generator))
        item_tokens = 2 + min(encoder.max_title_tokens, 4)
        rows = max(4, self.tokens // (count * item_tokens + readers * (length * item_tokens + 12)))
        items = self._distinct_items(rows, count + readers * length, generator)
        listed, history = items[:, :count], items[:, count:].unflatten(1, (readers, length)).clone()
        chosen = torch.rand(rows, count, generator=generator).argsort(1)[:, :readers]  # [B, R]
        targets = listed.gather(1, chosen)[..., None]
        place = torch.randint(0, length, (rows, readers, 1), generator=generator)
        if not by_vector:
            history.scatter_(2, place, targets)
        layout = encoder.layouts[int(torch.randint(0, len(encoder.layouts), (1,), generator=generator))]
        opening, stop, question, eos = (
            torch.full_like(targets, piece) for piece in (layout[0], *layout[-2:], encoder.eos_piece)
        )
        read = _listed(encoder, history).flatten(2)
        each = torch.cat([opening, read, stop, question, targets + encoder.first_title, eos], 2)  # [B, R, W]
        is_answer = torch.zeros_like(each, dtype=torch.bool)
        is_answer[..., -2:] = True
        pieces = torch.cat([_listed(encoder, listed).flatten(1), each.flatten(1)], 1)
        in_answer = torch.cat([torch.zeros(rows, count * 3, dtype=torch.bool), is_answer.flatten(1)], 1)
        prompts = encoder.assemble(pieces, torch.zeros_like(pieces), in_answer, "right")

        vectors = _vectors(generator, rows, count)
        of_history = _vectors(generator, rows, readers, length)
        if by_vector:  # the whole history lies around the target
            closeness = _closeness(generator, stage.closeness, rows, 1, 1, 1)
            centre = vectors.gather(1, chosen[..., None].expand(-1, -1, VECTOR_DIM))[:, :, None]
            of_history = _near(centre, closeness, of_history)
        vectors = torch.cat([vectors, of_history.flatten(1, 2)], 1).flatten(0, 1)
        return TaskBatch(prompts, vectors, f"readers by {'vector' if by_vector else 'text'}")

    def _selection(self, encoder: PromptEncoder, generator: torch.Generator, count: int, stage: Stage) -> TaskBatch:
        """Recommenders' prompts over made-up items."""
        longest = stage.history_max
        rows = max(8, self.tokens // (55 + (2 + min(encoder.max_title_tokens, 5)) * (count + longest // 2)))
        lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
        lengths = torch.where(torch.rand(rows, generator=generator) < 0.5, longest, lengths)
        present = torch.arange(MAX_HISTORY)[None] < lengths[:, None]
        items = self._distinct_items(rows, MAX_HISTORY + count, generator)
        history, candidates = items[:, :MAX_HISTORY].clone(), items[:, MAX_HISTORY:].clone()
        position = torch.randint(0, count, (rows,), generator=generator)
        all_rows = torch.arange(rows)
        # The history place that the target fits: the last in a third of the rows, else more likely a recent one.
        back = torch.empty(rows).exponential_(0.4, generator=generator).long()
        fit = (lengths - 1 - back).clamp(min=0)

        kind = torch.rand(rows, generator=generator)  # what tells the target: text, vectors, or both
        by_text, by_vector = kind < 1.6 * stage.text_share, kind > stage.text_share
        style = torch.rand(1, generator=generator).item()
        slotless = stage.hybrid_share + 4 / 7 * (1 - stage.hybrid_share)
        which = 0 if style < stage.hybrid_share else 1 if style < slotless else 2
        is_hybrid, is_lettered = which == 0, torch.rand(1, generator=generator).item() < stage.letter_share
        if not is_hybrid:
            by_text, by_vector = torch.ones_like(by_text), torch.zeros_like(by_vector)

        source = history[all_rows, fit]
        theme = (source - 1) // TITLES_PER_THEME
        first = 1 + theme * TITLES_PER_THEME
        other = source - first + 1 + torch.randint(0, TITLES_PER_THEME - 1, (rows,), generator=generator)
        same_theme = first + other % TITLES_PER_THEME
        # The groups of real titles share no word: there the target repeats the title itself.
        repeats = (torch.rand(rows, generator=generator) < 0.4) | (theme % 4 == 0)
        textual_target = torch.where(repeats, source, same_theme)
        targets = torch.where(by_text, textual_target, candidates[all_rows, position])
        candidates[all_rows, position] = targets

        history = torch.where(present, history, 0)
        template_index = torch.randint(0, len(encoder.templates), (rows,), generator=generator)
        representation = (LETTERED if is_lettered else SELECTION)[which]
        prompts = encoder.encode(history, candidates, targets, representation, template_index, "right")
        letters = encoder.answer_ids(candidates, representation, candidates)[..., 0] if is_lettered else None  # [B, C]
        kind = f"selection, {'hybrid' if is_hybrid else 'textual'}{', by letter' * is_lettered}"
        if not is_hybrid:
            nothing = torch.full((len(prompts.slot_rows), VECTOR_DIM), torch.nan)
            return TaskBatch(prompts, nothing, kind, position=position if is_lettered else None, letters=letters)
        vectors = _selection_vectors(count, position, fit, by_vector, stage.closeness, generator)
        if stage.size_spread:
            sizes = torch.randn(rows, MAX_HISTORY + count, 1, generator=generator) * stage.size_spread
            vectors = vectors * sizes.exp()
        kept = torch.cat([present, torch.ones(rows, count, dtype=torch.bool)], 1)
        # A row's slots are its history's and then its candidates'.
        candidate_slots = kept.sum(1).cumsum(0)[:, None] - count + torch.arange(count)
        return TaskBatch(prompts, vectors[kept], kind, candidate_slots, position, letters)


def _listed(encoder: PromptEncoder, items: torch.Tensor) -> torch.Tensor:
    """[..., 3] the pieces of items: separator, title, slot."""
    separator = torch.full_like(items, encoder.separator_piece)
    slot = torch.full_like(items, encoder.slot_piece(Part.ITEM_EMBEDDING))
    return torch.stack([separator, items + encoder.first_title, slot], -1)


def _spectrum(generator: torch.Generator) -> torch.Tensor:
    """Standard deviation of each vector dimension: flat to steep, mean square 1."""
    steepness = torch.rand(1, generator=generator)
    scale = torch.arange(1, VECTOR_DIM + 1).pow(-steepness)
    return scale / scale.square().mean().sqrt()


def _vectors(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, VECTOR_DIM, generator=generator) * _spectrum(generator)


def _closeness(generator: torch.Generator, least: float, *shape: int) -> torch.Tensor:
    return least + (1 - least) * torch.rand(*shape, generator=generator)


def _near(centre: torch.Tensor, closeness: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A noisy copy of vectors, whose correlation with them is ``closeness``."""
    return closeness * centre + (1 - closeness.square()).sqrt() * noise


def _selection_vectors(
    count: int, position: torch.Tensor, fit: torch.Tensor, by_vector: torch.Tensor, least: float, generator: torch.Generator
) -> torch.Tensor:
    """[B, L + C, VECTOR_DIM]: history of up to three interests, a target of one of them, unrelated negatives."""
    rows, all_rows = len(position), torch.arange(len(position))
    spectrum = _spectrum(generator)

    def draw(count: int) -> torch.Tensor:
        return torch.randn(rows, count, VECTOR_DIM, generator=generator) * spectrum

    closeness = _closeness(generator, least, rows, 1, 1)
    interests = draw(3)
    interest_num = torch.randint(1, 4, (rows, 1), generator=generator)
    chosen = (torch.rand(rows, MAX_HISTORY, generator=generator) * interest_num).long()
    # Interests last: an item often keeps the interest of the one before it.
    for place in range(1, MAX_HISTORY):
        stays = torch.rand(rows, generator=generator) < 0.5
        chosen[:, place] = torch.where(stays, chosen[:, place - 1], chosen[:, place])
    centres = interests.gather(1, chosen[..., None].expand(-1, -1, VECTOR_DIM))
    history = _near(centres, closeness, draw(MAX_HISTORY))
    target = _near(centres[all_rows, fit], closeness[:, 0], draw(1)[:, 0])
    # A third of the rows drift: the target is a noisy step from the last item alone.
    drifts = torch.rand(rows, 1, generator=generator) < 0.3
    target = torch.where(drifts, _near(history[all_rows, fit], closeness[:, 0], draw(1)[:, 0]), target)
    candidates = draw(count)
    candidates[all_rows, position] = torch.where(by_vector[:, None], target, candidates[all_rows, position])
    return torch.cat([history, candidates], 1)
