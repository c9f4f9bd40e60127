"""A small catalogue and its interactions as RecBole's atomic files, for tests that need real loaders."""

import random
from pathlib import Path
from typing import Any

N_USERS, N_ITEMS, LENGTH = 40, 60, 12


def write_toy_dataset(data_path: Path, seed: int = 0) -> dict[str, Any]:
    """Write the dataset ``toy``: every user walks along the items, mostly to the next one.

    Args:
        data_path: folder to which ``toy/`` is added.
        seed: of the walks.

    Returns:
        The keys a config needs for it: no GPU, few candidates, everything written beside the data.
    """
    folder = data_path / "toy"
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(N_USERS):
        item = rng.randrange(N_ITEMS)
        for time in range(LENGTH):
            lines.append(f"u{user}\ti{item}\t{1000 * user + time}")
            item = (item + (1 if rng.random() < 0.9 else 2)) % N_ITEMS
    (folder / "toy.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    items = ["item_id:token\ttitle:token_seq", *(f"i{item}\tTitle {item} é" for item in range(N_ITEMS))]
    (folder / "toy.item").write_text("\n".join(items) + "\n", encoding="utf-8")
    return {
        "data_path": str(data_path),
        "checkpoint_dir": str(data_path / "saved"),
        "protocol": "leave_one_out",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "title_field": "title",
        "candidate_num": 10,
        "use_gpu": False,
        "show_progress": False,
    }


GENRES = ("Drama", "", "Action Sci-Fi", "Children's")


def add_item_fields(data_path: Path) -> None:
    """Write the columns ``release_year`` and ``class`` into the dataset ``toy``; every fourth item has no class, every fifth no year."""
    path = data_path / "toy" / "toy.item"
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    rows = [
        f"{line}\t{f'{1990 + number % 9}.0' if number % 5 else ''}\t{GENRES[number % 4]}" for number, line in enumerate(lines)
    ]
    path.write_text("\n".join([f"{header}\trelease_year:float\tclass:token_seq", *rows]) + "\n", encoding="utf-8")
