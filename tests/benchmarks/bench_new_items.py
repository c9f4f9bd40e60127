"""How well a recommender proposes items that came after its training: the first step of recommending them, before the LLM reads one.

    python tests/benchmarks/bench_new_items.py --run=saved/RUN [--propose 20] [--key=value ...]

The run is one of an LLM under ``protocol: cold_items``. The items that its test rows hold out are added to it as new ones, by title and by
the fields that its prompts show. For the history of each test row, whose target is one of them, two things are told beside chance: how
often the target is among the first of the new items, and how often among all that is proposed, new and learned.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import recbole_llara
from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.data.dataset import prepare_data
from recbole_llara.data.held_out import TEST
from recbole_llara.data.titles import POPULARITY
from recbole_llara.evaluator.significance import wilson_interval

AS_NEW = "new "  # before the id of the item that is added again
DEPTHS = (5, 20)  # of the new items


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--propose", type=int, default=20, help="how many items are proposed (default %(default)s)")
    arguments, words = parser.parse_known_args(argv)
    run = recbole_llara.load(arguments.run, **parse_arguments(words))
    dataset = prepare_data(run.config).test_data.dataset
    if dataset.homes is None:
        raise SystemExit("run: found one whose protocol holds no items out, expected protocol cold_items")
    ids, feat = dataset.field2id_token[dataset.iid_field], dataset.inter_feat
    known = np.array([run.names.of_id(str(item)) or 0 for item in ids])  # of the dataset's numbers the run's

    fields = {name: of_items for name, of_items in run.data.catalogue.fields.items() if name != POPULARITY}
    held_out = known[dataset.homes == TEST].tolist()
    first = len(run.names.ids)
    run.add_items(
        {"item_id": AS_NEW + run.names.ids[item], "title": run.names.titles[item]}
        | {name: of_items[item] for name, of_items in fields.items() if of_items[item]}
        for item in held_out
    )
    as_new = {item: first + place for place, item in enumerate(held_out)}
    targets = np.array([as_new[item] for item in known[feat[dataset.iid_field].numpy()].tolist()])
    read = known[feat[dataset.iid_field + run.config["LIST_SUFFIX"]].numpy()].tolist()
    histories = [[item for item in row if item] for row in read]

    scores = run.retriever.scores(histories)[:, first:].detach().numpy()  # [n, new]
    own = np.take_along_axis(scores, (targets - first)[:, None], 1)
    places = (scores > own).sum(1) + (scores == own).sum(1) // 2  # equal scores: in the middle of them
    proposed = run.retriever.propose(histories, arguments.propose).numpy()  # [n, propose]
    new = len(held_out)
    sys.stdout.write(
        f"{len(targets)} rows, {new} new items, {first - 1} others; {run.proposing} proposes by {run.name}'s texts\n"
    )
    found = {f"first {depth} of the new": (places < depth, depth / new) for depth in DEPTHS}
    count = int((proposed >= first).sum(1).max())
    found[f"proposed, of {arguments.propose}"] = ((proposed == targets[:, None]).any(1), count / new)
    for told, (hits, chance) in found.items():
        hit = wilson_interval(int(hits.sum()), len(hits))
        sys.stdout.write(
            f"  target among the {told:<22} {hit.share:.3f} [{hit.low:.3f}, {hit.high:.3f}], by chance {chance:.3f}\n"
        )
    sys.stdout.write(f"  new items among the {arguments.propose} proposed: {(proposed >= first).sum(1).mean():.1f}\n")
    sys.stdout.write(f"  a new item before the target: {places.mean() / (new - 1):.3f} of them, by chance .500\n")


if __name__ == "__main__":
    main(sys.argv[1:])
