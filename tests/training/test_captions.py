"""What a tokenizer makes of the captions, and learning a new one for CLIP."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from kandinsky22.checkpoints import catalog, locate
from kandinsky22.checkpoints.tokenizer import load_tokenizer
from kandinsky22.models.tokenizer import learn
from kandinsky22.training.captions import tokenizer_notice
from kandinsky22.training.model_folder import TEXT_ENCODER, ModelFolder
from kandinsky22.training.model_trainer import ModelTrainer
from kandinsky22.training.network_training import TOKEN_EMBEDDING
from kandinsky22.training.photos import read_sources
from kandinsky22.training.precompute import DatasetConfig
from kandinsky22.training.processes import CPU
from kandinsky22.training.recipes import of_model
from kandinsky22.training.sources import Source

WORDS = ["otter", "badger", "heron", "lynx"]


def write_animals(folder: Path, captions: list[str]) -> Path:
    """Pictures with these captions."""
    folder.mkdir(parents=True)
    for number, caption in enumerate(captions):
        Image.new("RGB", (64, 64), (number, 90, 90)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def test_notice_names_captions_that_are_spelled_letter_by_letter(tmp_path: Path) -> None:
    sets = read_sources([Source(write_animals(tmp_path / "a", ["two otters swimming"] * 4))], 64, held_out=0)[0]
    strange, familiar = learn(["qqq"], 520, 48), learn(["two otters swimming"], 600, 48)
    notice = tokenizer_notice(strange, sets)
    assert "100% of the captions almost letter by letter (two otters swimming takes 17 tokens)" in notice
    assert "--new-tokenizer" in notice and "cuts" not in notice
    assert tokenizer_notice(familiar, sets) == ""


def test_notice_counts_captions_that_are_longer_than_the_limit(tmp_path: Path) -> None:
    captions = ["otter", "otter otter otter otter", "otter", "otter"]
    sets = read_sources([Source(write_animals(tmp_path / "a", captions))], 64, held_out=0)[0]
    notice = tokenizer_notice(learn(["otter"], 600, 5), sets)
    assert "cuts 25% of the captions at its limit of 3 tokens" in notice and "letter" not in notice


def test_clip_learns_a_new_tokenizer_and_keeps_the_embeddings_of_known_tokens(tiny_model: Path, tmp_path: Path) -> None:
    base = locate.part_folders(str(tiny_model))
    recipe = of_model(base)
    recipe = replace(recipe, runs={**recipe.runs, "clip": replace(recipe.runs["clip"], batch=4, learning_rate=1e-9)})
    dataset = DatasetConfig((Source(write_animals(tmp_path / "a", WORDS)),))
    trainer = ModelTrainer(recipe, tmp_path / "run", base, dataset, new_tokenizer=600)
    list(trainer.train("clip", steps=1))
    old = load_tokenizer(base[catalog.PRIOR] / "tokenizer").vocab
    new = load_tokenizer(trainer.model.path / catalog.PRIOR / "tokenizer").vocab
    assert {f"{word}</w>" for word in WORDS} <= new.keys()
    tables = [
        ModelFolder(Path(), parts).stored(TEXT_ENCODER).load(torch.float32, CPU).get_parameter(TOKEN_EMBEDDING)
        for parts in (base, trainer.model.parts)
    ]
    shared = [token for token in new if token in old]
    assert len(tables[1]) == len(new) and len(shared) > 500
    before, after = tables[0][[old[t] for t in shared]], tables[1][[new[t] for t in shared]]
    assert torch.allclose(before, after, atol=2e-3)
