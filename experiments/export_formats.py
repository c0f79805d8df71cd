"""The formats of `mixopt export`: what each trainer samples, and what to mind there.

Plain data, so that the command line can list it without loading anything. The syntax is
in `export_python.py` and `export_syntax.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixopt.errors import ConfigError, closest

TOKENS, DOCUMENTS, ROWS = "tokens", "documents", "rows kept"


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: As given to `--format`.
        summary: What is written, in one line.
        units: What its numbers may be shares of; the first unless asked otherwise.
        reason: Why the first, as a sentence.
        cautions: What to mind, a sentence each.
        has_paths: Whether it names the files of a domain.
    """

    name: str
    summary: str
    units: tuple[str, ...]
    reason: str
    cautions: tuple[str, ...] = ()
    has_paths: bool = True


_BLOCKS = "a sample is a block of equally many tokens, so shares of samples are shares of tokens."
_PACKED_ALREADY = "If your samples are packed to equal length already, export with --unit tokens."
_REPEATS = "a domain that runs out starts again, so the mixture holds to the end."
_ENDS = "The pass ends where the first domain runs out, so the mixture holds to the end."

_ALL = (
    Format(
        "hf",
        "Python for Hugging Face datasets: interleave_datasets",
        (DOCUMENTS, TOKENS),
        "interleave_datasets draws a domain per row, and a row is a document.",
        (
            f"all_exhausted: {_REPEATS}",
            "first_exhausted ends there instead; all_exhausted_without_replacement loses the mixture.",
            _PACKED_ALREADY,
        ),
    ),
    Format(
        "megatron",
        "shell array with the --data-path arguments of Megatron-LM",
        (TOKENS,),
        _BLOCKS,
        ("Prefixes are those of preprocess_data.py; correct the ones below.",),
    ),
    Format(
        "nemo",
        "Python for NeMo 2.0: PreTrainingDataModule",
        (TOKENS,),
        _BLOCKS,
        ("Prefixes are those of Megatron's preprocess_data.py; correct the ones below.",),
    ),
    Format(
        "torchtitan",
        "Python for torchtitan (since August 2026): DatasetMixConfig",
        (TOKENS,),
        "every domain is packed to rows of equal length first, so shares of rows are shares of tokens.",
        ("Packed after mixing, the weights would count documents.",),
    ),
    Format(
        "olmo-core",
        "YAML for OLMo-core: SourceMixtureList",
        (TOKENS,),
        "OLMo-core takes target_ratio of the requested tokens.",
        (
            "It refuses a source that has less than its share; max_repetition_ratio says how often it may be read.",
            "Paths are those of tokenized files; correct the ones below.",
        ),
    ),
    Format(
        "olmix",
        "YAML for olmix: mix with weight and repetition_factor",
        (TOKENS,),
        "olmix hands its weights to OLMo-core as shares of the requested tokens.",
        ("repetition_factor says how often a source may be read.",),
        has_paths=False,
    ),
    Format(
        "regmix",
        "YAML for the training script of RegMix",
        (TOKENS,),
        _BLOCKS,
        (
            "A key is the beginning of its files' names, in the data folder; correct those that differ.",
            "The script leaves out a domain with fewer files than devices, without an error.",
            "Add model_name.",
        ),
        has_paths=False,
    ),
    Format(
        "mosaic",
        "Python for MosaicML Streaming: Stream(proportion=...)",
        (TOKENS, DOCUMENTS),
        "MDS files for pretraining hold blocks of equally many tokens (concat_tokens), and shares are of samples.",
        (
            f"An epoch keeps the proportions: {_REPEATS}",
            "If a sample of your MDS files is a document, export with --unit documents.",
            "Folders are those of the MDS files; correct the ones below.",
        ),
    ),
    Format(
        "litdata",
        "Python for LitData: CombinedStreamingDataset",
        (TOKENS, DOCUMENTS),
        "TokensLoader reads blocks of equally many tokens, and shares are of samples.",
        (
            _ENDS,
            "If a sample is a document (no TokensLoader), export with --unit documents.",
            "Folders are those written by litdata.optimize; correct the ones below.",
        ),
    ),
    Format(
        "llama-factory",
        "YAML for LLaMA-Factory: interleave_probs",
        (DOCUMENTS,),
        "LLaMA-Factory draws a domain per row before it packs, and a row is a document.",
        (f"interleave_over: {_REPEATS}",),
    ),
    Format(
        "axolotl",
        "YAML for axolotl (since May 2026): datasets with weight",
        (ROWS,),
        "axolotl keeps this part of the rows of a domain, and reads what it kept once per epoch.",
        (
            "weight = (share of tokens / tokens there are) / the largest such ratio. They do not sum to 1.",
            "Versions before May 2026 ignore weight, and so does streaming.",
        ),
    ),
    Format(
        "nanotron",
        "YAML for nanotron: a data stage with dataset_weights",
        (TOKENS,),
        _BLOCKS,
        ("Folders are those of tokenized files (datatrove); correct the ones below.",),
    ),
    Format(
        "ray-data",
        "Python for Ray Data: Dataset.mix",
        (DOCUMENTS, TOKENS),
        "mix counts rows, and a row is a document.",
        (
            _ENDS,
            "By default (STOP_ON_LONGEST_DROP) Ray would go on with the others and lose the mixture.",
            "mix takes whole blocks in turn, so the blocks are made small.",
            _PACKED_ALREADY,
        ),
    ),
    Format(
        "json", "JSON with everything known of the mixture, for scripts", (TOKENS,), "as in the study.", has_paths=False
    ),
    Format("yaml", "the same as YAML", (TOKENS,), "as in the study.", has_paths=False),
    Format("csv", "a table with a row per domain", (TOKENS,), "as in the study.", has_paths=False),
)
FORMATS = {form.name: form for form in _ALL}


def find_format(name: str) -> Format:
    """Return the format of a name.

    Raises:
        ConfigError: With the known ones, and the one that was probably meant.
    """
    if name in FORMATS:
        return FORMATS[name]
    close = closest(name, FORMATS)
    hint = f"; did you mean {close!r}?" if close else ";"
    raise ConfigError(f"--format: unknown format {name!r}{hint} Known are {', '.join(FORMATS)}")


def find_unit(form: Format, wanted: str | None) -> str:
    """Return what the numbers are to be shares of.

    Raises:
        ConfigError: If the format cannot have that unit.
    """
    if wanted is None or wanted in form.units:
        return wanted or form.units[0]
    raise ConfigError(f"--unit: expected {' or '.join(form.units)} for {form.name}, got {wanted!r}; drop it")
