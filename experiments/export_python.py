"""Mixtures as Python files: datasets, NeMo, torchtitan, Streaming, LitData, Ray Data.

Every file can be run or imported as it is, once the paths are right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .export import Blend, Share, Source
from .export_formats import TOKENS
from .export_words import decimal


def hf(blend: Blend) -> str:
    """Return code that interleaves streams of rows."""
    rows = {share.name: _loaded(share) for share in blend.used}
    return f"""from datasets import interleave_datasets, load_dataset

probabilities = {_weights(blend)}
rows = {_mapping(rows)}
dataset = interleave_datasets(
    [rows[name] for name in probabilities],
    probabilities=list(probabilities.values()),
    seed=0,
    stopping_strategy="all_exhausted",
)
"""


def nemo(blend: Blend) -> str:
    """Return code that makes a data module of NeMo 2.0."""
    pairs = "".join(
        f"    {decimal(blend.weights[share.name])}, {literal(share.beside('_text_document'))},\n"
        for share in blend.used
    )
    return f"""from nemo.collections.llm.gpt.data import PreTrainingDataModule

train = [
{pairs}]
# Held-out parts of the same files; {{"train": train, "validation": ..., "test": ...}} names others.
data = PreTrainingDataModule(paths=train, split="990,8,2", seq_length=2048, micro_batch_size=1, global_batch_size=8)
"""


def torchtitan(blend: Blend) -> str:
    """Return code that packs every domain and mixes the rows."""
    sources = {share.name: _titan_source(share) for share in blend.used}
    columns = {share.name: literal(_source(share).column) for share in blend.used}
    return f"""from operator import itemgetter

from torchtitan.components.data import (
    ConcatThenSplitPackingConfig,
    DatasetMixConfig,
    GrainDataLoader,
    HuggingFaceStreamingSource,
    IndexedJsonlSource,
    SingleDatasetConfig,
    WeightedDataset,
)
from torchtitan.hf_datasets.text_datasets import TextProcessor


def has_tokens(sample):
    return sample is not None


def packed(source, column):
    dataset = SingleDatasetConfig(
        source=source,
        processor=TextProcessor.Config(text_fn=itemgetter(column)),
        post_filters=(has_tokens,),
    )
    return ConcatThenSplitPackingConfig(dataset=dataset)


weights = {_weights(blend)}
sources = {_mapping(sources)}
columns = {_mapping(columns)}
dataset = DatasetMixConfig(
    datasets=tuple(
        WeightedDataset(dataset=packed(sources[name], columns[name]), weight=weight) for name, weight in weights.items()
    ),
)
dataloader = GrainDataLoader.Config(dataset=dataset, seed=0, shuffle=True, repeat=True)
"""


def mosaic(blend: Blend) -> str:
    """Return code that makes a streaming dataset of proportions."""
    return f"""from streaming import Stream, StreamingDataset

BATCH_SIZE = 8  # per device

proportions = {_weights(blend)}
folders = {_folders(blend, "-mds")}
dataset = StreamingDataset(
    streams=[Stream(local=folders[name], proportion=share) for name, share in proportions.items()],
    shuffle=True,
    shuffle_seed=0,
    batch_size=BATCH_SIZE,
)
"""


def litdata(blend: Blend) -> str:
    """Return code that combines streaming datasets."""
    blocks = blend.unit == TOKENS
    imported = "CombinedStreamingDataset, StreamingDataset" + ", TokensLoader" * blocks
    size = "BLOCK_SIZE = 2048 + 1  # as in litdata.optimize\n\n" if blocks else ""
    loader = ", item_loader=TokensLoader(block_size=BLOCK_SIZE)" if blocks else ""
    return f"""from litdata import {imported}

{size}weights = {_weights(blend)}
folders = {_folders(blend, "-litdata")}
dataset = CombinedStreamingDataset(
    datasets=[StreamingDataset(folders[name]{loader}, shuffle=True) for name in weights],
    weights=list(weights.values()),
    seed=42,
    iterate_over_all=False,  # with True, LitData refuses weights
)
"""


def ray_data(blend: Blend) -> str:
    """Return code that mixes rows in small blocks."""
    rows = {share.name: _ray_rows(share) for share in blend.used}
    hub = "\nfrom datasets import load_dataset" * any(_source(share).files is None for share in blend.used)
    return f"""import glob

import ray{hub}

BLOCK_ROWS = 16  # rows that come from one domain in a row


def files(pattern):
    return sorted(glob.glob(pattern, recursive=True))


weights = {_weights(blend)}
rows = {_mapping(rows)}
first, *others = (rows[name].repartition(target_num_rows_per_block=BLOCK_ROWS) for name in weights)
dataset = first.mix(
    *others,
    weights=list(weights.values()),
    stopping_condition=ray.data.MixStoppingCondition.STOP_ON_SHORTEST,
)
"""


PYTHON: Mapping[str, Callable[[Blend], str]] = {
    "hf": hf,
    "nemo": nemo,
    "torchtitan": torchtitan,
    "mosaic": mosaic,
    "litdata": litdata,
    "ray-data": ray_data,
}


# --- pieces of code ----------------------------------------------------------


def literal(value: Any) -> str:
    """Return text, or a mapping of texts, as a Python literal in double quotes: JSON's escapes are Python's."""
    return json.dumps(value, ensure_ascii=False)


def _mapping(cells: Mapping[str, str]) -> str:
    return "{\n" + "".join(f"    {literal(name)}: {cell},\n" for name, cell in cells.items()) + "}"


def _weights(blend: Blend) -> str:
    return _mapping({name: decimal(value) for name, value in blend.weights.items()})


def _folders(blend: Blend, suffix: str) -> str:
    return _mapping({share.name: literal(share.beside(suffix)) for share in blend.used})


def _source(share: Share) -> Source:
    """Return where a domain's text lies; a placeholder if only the user knows."""
    return share.source or Source.at(f"{share.name}.jsonl")


def _call(source: Source) -> str:
    """Return the arguments of `datasets.load_dataset`."""
    words = [literal(source.loader), *([f"name={literal(source.config)}"] if source.config else [])]
    words += [f"{name}={literal(value)}" for name, value in _files(source).items()]
    return ", ".join([*words, f"split={literal(source.split)}"])


def _files(source: Source) -> dict[str, str]:
    """Return the arguments of `load_dataset` that name files; a text file is one document."""
    whole = {"sample_by": "document"} if source.loader == "text" else {}
    return {"data_files": source.files, **whole} if source.files else {}


def _loaded(share: Share) -> str:
    """Return code that opens a domain as a stream of rows with the one column `text`."""
    source = _source(share)
    opened = f"load_dataset({_call(source)}, streaming=True).select_columns({literal(source.column)})"
    return opened if source.column == "text" else f'{opened}.rename_column({literal(source.column)}, "text")'


def _titan_source(share: Share) -> str:
    source = _source(share)
    if source.files and source.files.endswith(".jsonl") and "**" not in source.files:
        return f"IndexedJsonlSource.Config(patterns=({literal(source.files)},))"
    words = [f"path={literal(source.loader)}", f"split={literal(source.split)}"]
    words += [f"name={literal(source.config)}"] if source.config else []
    words += [f"load_dataset_kwargs={literal(_files(source))}"] if source.files else []
    return f"HuggingFaceStreamingSource.Config({', '.join(words)})"


def _ray_rows(share: Share) -> str:
    """Return code that reads a domain as rows with the one column `text`."""
    source = _source(share)
    if source.files is None:
        rows = f"ray.data.from_huggingface(load_dataset({_call(source)}))"
    else:
        reader = {"json": "read_json", "parquet": "read_parquet", "text": "read_text"}[source.loader]
        lines = ", lines=True" if source.loader == "json" else ""
        rows = f"ray.data.{reader}(files({literal(source.files)}){lines})"
    rows += f".select_columns([{literal(source.column)}])"
    return rows if source.column == "text" else f'{rows}.rename_columns({{{literal(source.column)}: "text"}})'
