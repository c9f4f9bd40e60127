"""RecBole's SequentialDataset with our protocols, and a candidate set beside every valid and test row.

Stock models and ours take the same loaders from `prepare_data`; the candidates ride along as one more column.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import FeatureType, ModelType

from recbole_llara.config.models import is_llm_recommender
from recbole_llara.config.settings import COLD_ITEMS, EARLIER, READY_MADE, DataProtocol
from recbole_llara.data.atomic_files import CheckedFiles
from recbole_llara.data.candidates import CandidateSampler, read_candidates, save_candidates
from recbole_llara.data.held_out import TEST, TRAIN, VALID, HoldsItemsOut, draw_homes, split_by_homes
from recbole_llara.data.numbering import Numbering, read_numbering, user_hashes
from recbole_llara.data.rows import SPLITS, Knowledge, Rows, TrainingPart, split_users
from recbole_llara.data.snapshot import SnapshotDataset
from recbole_llara.data.titles import Catalogue, load_catalogue, read_titles
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import sample_rows

ROW_FIELD = "row_id"
CANDIDATE_FIELD = "candidate_id_list"
PLACE_FIELD = "target_place"
# These bring a dataset class of their own into RecBole's create_dataset, for columns that ours does not make.
MODELS_WITH_OWN_DATASET = ("DIEN", "GRU4RecKG", "KSR")

_logger = logging.getLogger()


class CandidateDataset(HoldsItemsOut, CheckedFiles):
    """A SequentialDataset split by our protocols.

    After `build`, each split's `inter_feat` has the int64 columns `row_id` [rows], counted before max_train_rows or
    max_eval_rows thin the split, and `target_place` [rows], see ``Rows``; valid and test have `candidate_id_list` [rows, C].

    Args:
        config: RecBole's Config with our keys.
        numbering: the numbers that items, users and features get; None = RecBole's, in the order of the files.
        part: of the training rows that are taken, keeping their numbers; None = all.
    """

    knowledge: Knowledge  # of the splits; each of them has it too
    user_hashes: np.ndarray  # [U - 1] int64, of users' ids in the order of their numbers
    catalogue: Catalogue | None = None  # the items' texts, of the splits of ``prepare_data``

    def __init__(self, config: Any, numbering: Numbering | None = None, part: TrainingPart | None = None) -> None:
        self.protocol = DataProtocol.from_config(config)
        self.repeat_share: dict[str, float] = {}  # of the rows of each split, those whose target the user had before
        self.numbering, self.part = numbering, part
        super().__init__(config)

    def _remap(self, remap_list: list[tuple[Any, str, FeatureType]]) -> None:
        """Number the ids of some fields, which share their numbers: first those of ``numbering``, then others in their order."""
        numbering, fields = self.numbering, [name for _, name, _ in remap_list]
        names = () if numbering is None else (self.uid_field, self.iid_field, *numbering.features)
        known = next((name for name in names if name in fields), None)
        if known is None:
            super()._remap(remap_list)
        else:
            kind = {self.uid_field: "users", self.iid_field: "items"}.get(known, known)
            here = pd.factorize(self._concat_remaped_tokens(remap_list)[0])[1]
            known_ids = pd.DataFrame({known: numbering.known_ids(kind, here)}, dtype=object)
            super()._remap([(known_ids, known, FeatureType.TOKEN), *remap_list])
        if known == self.iid_field:
            of_interactions = [entry for entry in remap_list if entry[0] is self.inter_feat]
            numbering.check_known(self._concat_remaped_tokens(of_interactions)[0])
        if self.uid_field in fields:
            self.user_hashes = user_hashes(self.field2id_token[self.uid_field][1:])
            if numbering is not None:
                self.user_hashes[: len(numbering.users)] = numbering.users  # those whom the data lacks have no ids

    def _change_feat_format(self) -> None:
        """Give rows their final form, by time or as they are.

        Sorted by time in float64 first: RecBole keeps time as float32, whose steps are a minute or more today. Its own sorts are
        stable and float32 keeps the order of float64, so what is sorted here stays sorted. Ready-made rows keep the last L items
        of each history, 0-padded to L on the right: RecBole pads to the longest history and never cuts.
        """
        if self.protocol.split != READY_MADE:
            self.inter_feat = self.inter_feat.sort_values(self.time_field, kind="stable", ignore_index=True)
            self.users_in_order = self.inter_feat[self.uid_field].unique().astype(np.int64)
            super()._change_feat_format()
            return
        field, limit = self.item_id_list_field, self.max_item_list_len
        histories = [np.asarray(items, dtype=np.int64)[-limit:] for items in self.inter_feat[field]]
        lengths = np.array([len(items) for items in histories])
        if not lengths.all():
            row = int((lengths == 0).argmax())
            raise UserError(f"row {row + 1} of the windows of {self.dataset_name} has no history, expected at least one item")
        self.users_in_order = self.inter_feat[self.uid_field].unique()
        self.inter_feat[field], self.inter_feat[self.item_list_length_field] = histories, lengths
        self.field2seqlen[field] = limit
        super()._change_feat_format()
        padded = self.inter_feat[field]
        self.inter_feat[field] = F.pad(padded, (0, limit - padded.shape[1]))

    def data_augmentation(self) -> None:
        """RecBole's rows by array operations: (history, target) for each position of each user but the first, R in all.

        Users [5, 5, 5, 8, 8] and L = 2 give targets at 1, 2, 4, of histories [0], [0, 1], [3]. Were the item at 1 held out by
        protocol cold_items, the histories would be [0], [0], [3].
        """
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        users, items = self.inter_feat[self.uid_field].numpy(), self.inter_feat[self.iid_field].numpy()
        self._interactions = users, items  # [M] each, by user and time
        if self.protocol.split == COLD_ITEMS:
            self.homes = self._draw_homes()
        is_shown = np.ones(len(items), dtype=bool) if self.homes is None else self.homes[items] == TRAIN  # [M] in histories
        shown = torch.from_numpy(np.flatnonzero(is_shown))
        before = np.cumsum(is_shown) - is_shown  # [M] how many are shown before each, of this user and of those above
        above = pd.Series(before).groupby(users).transform("first").to_numpy()
        place = torch.from_numpy(before - above)  # [M] among the user's own
        target = place.nonzero()[:, 0]  # [R]
        length, column = place[target].clamp(max=self.max_item_list_len), torch.arange(self.max_item_list_len)[None]
        is_padding = column >= length[:, None]  # [R, L]
        first = torch.from_numpy(before)[target] - length
        history = shown[first[:, None] + torch.minimum(column, length[:, None] - 1)]  # [R, L] interactions
        columns = {field: values[target] for field, values in self.inter_feat.interaction.items()}
        columns[self.item_list_length_field], columns[PLACE_FIELD] = length, target
        for field, values in self.inter_feat.interaction.items():
            if field != self.uid_field:
                columns[field + self.config["LIST_SUFFIX"]] = values[history]  # [R, L, ...]
                columns[field + self.config["LIST_SUFFIX"]][is_padding] = 0
        self.inter_feat = Interaction(columns)

    def build(self) -> list["CandidateDataset"]:
        """Split into train, valid and test, and give the rows their numbers and candidates.

        Raises:
            UserError: a split is left without rows, or candidates cannot be drawn.
        """
        protocol = self.protocol
        least = (protocol.min_train_history, protocol.min_eval_history, protocol.min_eval_history)
        by_protocol = {"user_time": lambda: self._build_by_user(least), COLD_ITEMS: self._build_by_homes}
        splits = by_protocol.get(protocol.split, super().build)()
        if protocol.split == READY_MADE:
            for number, split in enumerate(splits):
                split.inter_feat[PLACE_FIELD] = torch.full((len(split.inter_feat),), number)
            self.knowledge = Knowledge.from_windows([self.rows_of(split.inter_feat) for split in splits])
            for name, split, number in zip(SPLITS, splits, least, strict=True):
                is_long = split.inter_feat[self.item_list_length_field] >= number
                why = f"their history is shorter than {number} (min_train_history or min_eval_history)"
                split.inter_feat = _kept(split.inter_feat, is_long, name, why)
        else:
            users, items = self._interactions
            rows = [self.rows_of(split.inter_feat) for split in splits]
            self.knowledge = Knowledge(users, items, np.arange(len(users)), rows, self.homes)
        for name, split in zip(SPLITS, splits, strict=True):
            split.knowledge = self.knowledge
            split.inter_feat = self._finish(self._settle_repeats(split.inter_feat, name), name)
        return splits

    def rows_of(self, inter_feat: Interaction) -> Rows:
        """What candidates are drawn by, of rows of a split."""
        history = self.iid_field + self.config["LIST_SUFFIX"]
        return Rows(*(inter_feat[field].numpy() for field in (self.uid_field, self.iid_field, history, PLACE_FIELD)))

    def _build_by_user(self, least: Sequence[int]) -> list["CandidateDataset"]:
        """The papers' protocol: every row of the training users, the last row of each valid and test user."""
        self._change_feat_format()
        self._drop_unused_col()
        users, length = self.inter_feat[self.uid_field].numpy(), self.inter_feat[self.item_list_length_field].numpy()
        is_last, splits = ~pd.Series(users).duplicated(keep="last").to_numpy(), []
        for name, own, number in zip(SPLITS, split_users(self.users_in_order, self.protocol.split_ratio), least, strict=True):
            is_taken = np.isin(users, own) & (length >= number) & (is_last | (name == "train"))
            splits.append(self.copy(self.inter_feat[np.flatnonzero(is_taken)]))
        return splits

    def _draw_homes(self) -> np.ndarray:
        """[N] of each item the split whose targets it may be; those of one title share it."""
        names = self.field2id_token[self.iid_field]
        if self.config["title_field"]:
            names = ["", *read_titles(self, self.config)[2]]
        protocol = self.protocol
        homes = draw_homes(names, protocol.cold_item_share, protocol.eval_seed)
        n_test, n_valid = (int((homes == split).sum()) for split in (TEST, VALID))
        told = f"{n_test} items for test and {n_valid} for validation of {len(names) - 1} by cold_item_share {protocol.cold_item_share}"
        if min(n_test, n_valid) < protocol.candidate_num:
            raise UserError(
                f"protocol cold_items: held out {told}, expected at least candidate_num ({protocol.candidate_num}) each, which stand "
                "together in a row: raise cold_item_share, or lower candidate_num"
            )
        _logger.info(f"protocol cold_items: held out {told}, seed {protocol.eval_seed}")
        return homes

    def _build_by_homes(self) -> list["CandidateDataset"]:
        """Of every user the last rows of a test and, before it, of a validation item, and the training rows before both."""
        self._change_feat_format()
        self._drop_unused_col()
        everybody, items = self._interactions
        place = self.inter_feat[PLACE_FIELD].numpy()
        is_new = ~pd.Series(everybody * self.item_num + items).duplicated().to_numpy()[place]
        parts = split_by_homes(self.inter_feat[self.uid_field].numpy(), self.homes[items[place]], is_new)
        if not all(map(np.any, parts)):
            counts = ", ".join(f"{int(part.sum())} {name}" for name, part in zip(SPLITS, parts, strict=True))
            raise UserError(
                f"protocol cold_items: {counts} rows are left of {self.dataset_name}, {len(everybody)} interactions of "
                f"{len(self.users_in_order)} users, expected some of each: users need a held-out item of either kind behind learned "
                f"ones; change cold_item_share (now {self.protocol.cold_item_share}), or keep more interactions"
            )
        return [self.copy(self.inter_feat[np.flatnonzero(part)]) for part in parts]

    def _settle_repeats(self, inter_feat: Interaction, split: str) -> Interaction:
        """Look for targets that the user had before; leave them out, or tell of them, as `repeated_targets` says."""
        is_repeat, choice = self.knowledge.is_repeat(self.rows_of(inter_feat)), self.protocol.repeated_targets
        repeats, n_rows = int(is_repeat.sum()), len(is_repeat)
        self.repeat_share[split] = repeats / max(n_rows, 1)
        if repeats and choice == "drop":
            return _kept(inter_feat, torch.from_numpy(~is_repeat), split, "repeated_targets is drop")
        if repeats and choice == "keep" and split != "train":
            _logger.warning(
                f"{split}: in {repeats} of {n_rows} rows ({repeats / n_rows:.1%}) the user had the target before, and no other "
                "candidate ever: a rule that picks the candidate in the history is right there, so HitRatio@1 says little. "
                "repeated_targets: drop leaves these rows out; match draws negatives from the user's own past too, as often as "
                "targets are."
            )
        return inter_feat

    def _finish(self, inter_feat: Interaction, split: str) -> Interaction:
        """Number the rows of one split, thin them, and add the candidates to valid and test."""
        protocol, is_train = self.protocol, split == "train"
        if len(inter_feat) == 0:
            raise UserError(
                f"The {split} split has no rows: {len(self.users_in_order)} users with {len(self.knowledge.known['test'].keys)} "
                f"different interactions are left by the filters, under protocol {protocol.protocol}, split_ratio "
                f"{list(protocol.split_ratio)}, min_train_history {protocol.min_train_history} and min_eval_history "
                f"{protocol.min_eval_history}."
            )
        # Experiments that share candidate_seed share their valid and test rows too, whatever their own seed.
        limit, seed = (protocol.max_train_rows, protocol.seed) if is_train else (protocol.max_eval_rows, protocol.eval_seed)
        numbers = np.arange(len(inter_feat))
        if is_train and self.part is not None:
            numbers = np.flatnonzero(self.part.of(self.rows_of(inter_feat)))
            if not len(numbers):
                raise UserError(
                    f"recommender_rows: found {EARLIER}, but none of the {len(self.users_in_order)} users has two training rows; expected all"
                )
        numbers = numbers[sample_rows(len(numbers), limit, seed, f"rows/{split}")]
        inter_feat = inter_feat[numbers] if len(numbers) < len(inter_feat) else inter_feat
        inter_feat[ROW_FIELD] = torch.from_numpy(numbers)
        if is_train:
            return inter_feat
        rows = self.rows_of(inter_feat)
        if protocol.candidate_file is not None:
            ids = self.field2token_id[self.uid_field], self.field2token_id[self.iid_field]
            candidates = read_candidates(Path(protocol.candidate_file), rows, split, protocol.candidate_num, *ids)
            self._refuse_other_homes(candidates, split)
        else:
            candidates = self.candidate_sampler(split, seed).draw(numbers, rows, split)
        inter_feat[CANDIDATE_FIELD] = torch.from_numpy(candidates)
        return inter_feat

    def _refuse_other_homes(self, candidates: np.ndarray, split: str) -> None:
        """Raise where candidates of a user's own [B, C] are not all held out for the split: one that is learned is no target."""
        is_other = False if self.homes is None else (self.homes[candidates] != SPLITS.index(split)).any(axis=1)
        if np.any(is_other):
            raise UserError(
                f"candidate_file: {is_other.sum()} of {len(candidates)} {split} rows have candidates that protocol cold_items does not hold "
                f"out for {split}, expected held-out ones alone, among which the target does not stand out; draw them by "
                "recbole-llara candidates under the same keys, or leave candidate_file out"
            )

    @property
    def n_known(self) -> int:
        """Items from this number on have no interactions; only after `build`."""
        return self.knowledge.known["test"].n_items

    @property
    def training_counts(self) -> np.ndarray:
        """[N] how many users took each item in training; only after `build`."""
        return self.knowledge.known["train"].counts(self.item_num)

    def interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items [M] of all interactions that the filters keep; of ready-made windows the different ones. After `build`."""
        if self.protocol.split == READY_MADE:
            return tuple(np.divmod(self.knowledge.known["test"].keys, self.n_known))
        return self._interactions

    def candidate_sampler(self, split: str, seed: int) -> CandidateSampler:
        """A sampler for the rows of a split, over the items that have interactions; only after `build`."""
        protocol, known, share = self.protocol, self.knowledge.known[split], self.repeat_share[split]
        past = self.knowledge.past if protocol.repeated_targets == "match" else None
        pool = None
        if self.homes is not None:
            pool = 1 + np.flatnonzero(self.homes[1 : known.n_items] == SPLITS.index(split))
        return CandidateSampler(known, protocol.candidate_num, seed, protocol.candidate_exclude, past, share, pool=pool)

    def order_by_text(self, catalogue: Catalogue) -> None:
        """Put the rows of an evaluation in the order of their texts' length, so that prompts of one batch need little padding.

        ``row_id`` still tells which row is which, and answers depend on no other row.
        """
        texts = zip(catalogue.titles, *catalogue.fields.values(), strict=True)
        characters = torch.tensor([sum(map(len, of_item)) for of_item in texts])
        history = self.inter_feat[self.iid_field + self.config["LIST_SUFFIX"]]
        length = characters[history].sum(1) + characters[self.inter_feat[CANDIDATE_FIELD]].sum(1)  # [R]
        self.inter_feat = self.inter_feat[length.argsort(stable=True)]


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """All that training and evaluation take from the data; of a run that is loaded to answer only ``dataset``."""

    dataset: CandidateDataset | SnapshotDataset  # the training split, as RecBole's models want it for their sizes
    train_data: TrainDataLoader | None = None
    valid_data: FullSortEvalDataLoader | None = None
    test_data: FullSortEvalDataLoader | None = None
    sampler: CandidateSampler | None = None  # draws the candidates of training rows, new ones for each epoch
    candidate_sha256: dict[str, str] = dataclasses.field(default_factory=dict)  # of valid and test
    kept: Path | None = None  # the checkpoint of a run that is loaded to answer, which holds more that need not be made anew

    @property
    def catalogue(self) -> Catalogue | None:
        """The items' texts; None where the dataset names no title_field."""
        return self.dataset.catalogue


def training_part(config: Any) -> TrainingPart | None:
    """The training rows that the LLM of a run is tuned on; None = all, as for other models."""
    if not is_llm_recommender(config["model"]) or config["recommender_rows"] != EARLIER:
        return None
    return TrainingPart(config["later_rows_share"], is_later=True)


def prepare_data(config: Any, numbering: Numbering | None = None, part: TrainingPart | None = None) -> PreparedData:
    """Load, split, freeze the candidates and wrap all in RecBole's loaders; never unpickles a cached dataset.

    Args:
        config: RecBole's Config of a sequential model, with our keys.
        numbering: the numbers by which a trained model knows the items; None = those of `checkpoint` or `rec_checkpoint`
            where one is given, else RecBole's.
        part: of the training rows that are taken; None = as ``training_part`` says.

    Raises:
        UserError: the model is not one that takes sequential rows, or the data and keys do not fit.
    """
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL or config["model"] in MODELS_WITH_OWN_DATASET:
        raise UserError(
            f"model is {config['model']}, expected a sequential model that reads RecBole's plain SequentialDataset "
            f"(not {', '.join(MODELS_WITH_OWN_DATASET)})."
        )
    given = (read_numbering(Path(config[key]), key) for key in ("checkpoint", "rec_checkpoint") if config[key])
    dataset = CandidateDataset(config, numbering or next(filter(None, given), None), part or training_part(config))
    splits = dataset.build()
    _check_features(dataset, config)
    catalogue = load_catalogue(dataset, config) if config["title_field"] else None
    for split in splits:
        split.catalogue = catalogue
    loaders, sha256 = {}, {}
    for name, split, sampler in zip(SPLITS, splits, create_samplers(config, dataset, splits), strict=True):
        shuffle = bool(config["shuffle"]) and name == "train"
        loaders[f"{name}_data"] = get_dataloader(config, name)(config, split, sampler, shuffle=shuffle)
        told = f"{name}: {len(split)} rows"
        if name != "train":
            path, sha256[name] = _freeze(split, name, Path(config["checkpoint_dir"]) / "candidates")
            told += f", candidates {path}, SHA-256 {sha256[name]}"
            if catalogue is not None:
                split.order_by_text(catalogue)
        _logger.info(told)
    sampler = dataset.candidate_sampler("train", dataset.protocol.seed)
    return PreparedData(splits[0], sampler=sampler, candidate_sha256=sha256, **loaders)


def _kept(inter_feat: Interaction, is_kept: torch.Tensor, split: str, why: str) -> Interaction:
    if is_kept.all():
        return inter_feat
    _logger.info(f"{split}: {int((~is_kept).sum())} of {len(is_kept)} rows left out, {why}")
    return inter_feat[is_kept]


def _check_features(dataset: CandidateDataset, config: Any) -> None:
    """Refuse features that a model reads and nobody loads, and places below the last item."""
    for name in config["selected_features"] or ():
        if name not in dataset.field2type:
            raise UserError(
                f"selected_features: found {name!r}, expected loaded columns of {config['dataset']}: {', '.join(dataset.field2type)}; "
                f"add it to load_col.item, or change selected_features"
            )
    topk = config["topk"] or [1]
    if max(topk) > dataset.item_num:
        raise UserError(f"topk: found {max(topk)}, expected at most the {dataset.item_num - 1} items of {config['dataset']}")


def _freeze(split: CandidateDataset, name: str, folder: Path) -> tuple[Path, str]:
    """Save a split's candidate sets and hash them."""
    stem, tokens = f"{split.dataset_name}-{split.protocol.protocol}-{name}", split.field2id_token
    rows, candidates = split.rows_of(split.inter_feat), split.inter_feat[CANDIDATE_FIELD].numpy()
    return save_candidates(folder, stem, rows, candidates, tokens[split.uid_field], tokens[split.iid_field])
