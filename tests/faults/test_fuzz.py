"""Every reader and parser on damaged input: an answer, or an error of ours that names the place.

Each test draws its rounds from one seed, which stands in the name of a failure. FAULTS_ROUNDS sets
how many (`make faults-long`: more), FAULTS_SEED another beginning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from eval.lexicons import FORMATS, BadLine, Entry, detect_format, read_entries
from eval.models import load_model
from launch.config import RunConfig, parse_config
from launch.profiles import JobSettings, Profile, load_profile
from mining.common.errors import InputError, PivotsError, SettingsError
from mining.common.files import read_json, sha256_file, write_json
from mining.common.lineage import lineage, verify_outputs
from mining.common.manifest import read_manifest
from mining.common.shards import ShardInfo, read_shard, write_shard
from mining.common.stage import FilesInput, Input, NamedInput, StageInput, begin
from mining.common.task import Task, read_task, task_files
from mining.common.token_file import open_token_file, write_token_file
from mining.common.tokenizer import load_tokenizer
from mining.documents import FileReader, Record, Rejected
from mining.inputs import open_readers
from mining.settings import CorpusSettings
from mining.token_settings import TokenFilesSettings
from tests.faults.mutate import bad_bytes, bad_record, good_record, packed
from training.checkpoint import load_weights, newest_checkpoint
from training.model import from_config, model_config
from training.settings import ModelSettings

pytestmark = pytest.mark.faults
ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "300"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))
CORPUS = CorpusSettings(max_record_bytes=1 << 12)


def rounds(name: str, share: float = 1.0) -> Iterator[tuple[int, random.Random]]:
    """The seeds of a test, each with its random numbers."""
    for number in range(SEED, SEED + max(10, int(ROUNDS * share))):
        yield number, random.Random(f"{name}/{number}")


def named(error: Exception, place: Path | str, number: int) -> None:
    """An error says where it is; `number` is the round."""
    assert str(place) in str(error), number


def texts(draw: random.Random) -> bytes:
    make = itertools.chain([bad_record], itertools.repeat(good_record))
    return b"\n".join(next(make)(draw, k) for k in range(draw.randrange(1, 30)))


def table_bytes(draw: random.Random, suffix: str) -> bytes:
    n = draw.randrange(1, 40)
    table = pa.table(
        {
            "id": [f"d{k}" for k in range(n)],
            "text": pa.array([draw.choice(("été", "x" * 50, None)) for _ in range(n)], pa.string()),
            "metadata": [{"tags": ["a"] * (k % 3), "n": k} for k in range(n)],
            "when": pa.array([draw.getrandbits(62) for _ in range(n)], pa.timestamp("us", "UTC")),
        }
    )
    sink = pa.BufferOutputStream()
    if suffix == ".parquet":
        pq.write_table(table, sink, row_group_size=10, compression=draw.choice(("zstd", "none")))
    else:
        make = pa.ipc.new_stream if draw.random() < 0.5 else pa.ipc.new_file
        with make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=10)
    found: bytes = sink.getvalue().to_pybytes()
    return found


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow"])
def test_documents(tmp_path: Path, suffix: str) -> None:
    for number, draw in rounds(suffix):
        data = (
            packed(texts(draw), suffix, draw.randrange(1, 4))
            if suffix.startswith(".jsonl")
            else table_bytes(draw, suffix)
        )
        path = tmp_path / f"a{suffix}"
        path.write_bytes(bad_bytes(draw, data))
        reader = FileReader(str(path), path.name, CORPUS)
        places = []
        for item in reader:
            assert isinstance(item, Record | Rejected), number
            places.append(item.line)
            if isinstance(item, Rejected):
                assert item.reason, number
                assert len(item.raw) <= 64 << 10, number
            else:
                fields = (item.id, item.text, item.source, item.lang, item.group)
                "".join(field or "" for field in fields).encode()
        assert places == sorted(set(places)), number
        assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest(), number


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        JSON
        | st.fixed_dictionaries(
            {"text": JSON}, optional=dict.fromkeys(("id", "lang", "source"), JSON)
        ),
        max_size=5,
    )
)
def test_any_json_is_a_record_or_rejected(tmp_path: Path, values: list[Any]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    items = list(FileReader(str(path), path.name, CORPUS))
    assert [item.line for item in items] == list(range(1, len(values) + 1))
    for item, value in zip(items, values, strict=True):
        if isinstance(item, Record):
            assert item.text == value["text"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    words = {w: i for i, w in enumerate(["<unk>", "</s>", *(f"w{k}" for k in range(30))])}
    engine = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.save(str(folder / "tokenizer.json"))
    return folder


def documents(draw: random.Random) -> list[Any]:
    return [
        np.array([draw.randrange(2, 32) for _ in range(draw.randrange(9))], dtype=np.uint32)
        for _ in range(draw.randrange(1, 12))
    ]


@pytest.mark.parametrize("layout", ["ds", "memmap", "sequences"])
def test_token_files(tmp_path: Path, tokenizer: Path, layout: Any) -> None:
    loaded = load_tokenizer(tokenizer)
    more = {"sequence_length": 4, "step_sequences": 1} if layout == "sequences" else {}
    more |= {"order": str(tmp_path / "order.bin")} if layout == "sequences" else {}
    corpus = CorpusSettings(
        path=str(tmp_path / "a.ds"), token_files=TokenFilesSettings(layout=layout, **more)
    )
    for number, draw in rounds(layout):
        path = tmp_path / "a.ds"
        write_token_file(path, documents(draw), loaded.vocab_size, loaded.eos_id)
        np.arange(2, dtype="<u4").tofile(tmp_path / "order.bin")
        for target in (path, tmp_path / "a.ds.index", tmp_path / "order.bin"):
            if draw.random() < 0.5:
                target.write_bytes(bad_bytes(draw, target.read_bytes()))
        try:
            for reader in open_readers(corpus, tokenizer):
                for item in reader:
                    if isinstance(item, Record):
                        assert item.tokens is not None
                        assert (item.tokens < loaded.vocab_size).all(), number
        except (InputError, SettingsError) as error:
            # What is wrong with an order is told by its numbers.
            if not re.search("the order asks|corpus.token_files", str(error)):
                named(error, tmp_path, number)
        try:
            tokens, ends = open_token_file(path, loaded.vocab_size)
        except InputError as error:
            named(error, "a.ds", number)
        else:
            assert len(tokens) == (ends[-1] if len(ends) else 0), number


LEXICONS = {
    "pairs": "dog Hund\ncat\tKatze\nle chien\tthe dog\n",
    "table": "source\ttarget\tpos\tsense\ndog\tHund\tn\t1\ndog\tRüde\tn\t2\n",
    "cedict": (
        "# CC-CEDICT\n狗 狗 [gou3] /dog/CL:隻|只[zhi1]/\n貓 猫 [mao1] /cat (animal)/to hide/\n"
    ),
    "wiktextract": (
        '{"word": "dog", "lang_code": "en", "pos": "noun", "senses": [{"glosses": ["a pet"]}], '
        '"translations": [{"word": "Hund", "code": "de", "sense": "a pet", "tags": ["x"]}]}\n'
        '{"word": "Hund", "lang_code": "de", "senses": [{"glosses": ["dog, hound"]}]}\n'
    ),
}


@pytest.mark.parametrize("name", sorted(LEXICONS))
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_lexicons(tmp_path: Path, name: str, suffix: str) -> None:
    assert set(LEXICONS) < set(FORMATS)
    path = tmp_path / f"en-de.txt{suffix}"
    for number, draw in rounds(f"{name}{suffix}"):
        data = LEXICONS[name].encode()
        if suffix:
            data = packed(bad_bytes(draw, data) if draw.random() < 0.5 else data, suffix)
        path.write_bytes(bad_bytes(draw, data) if not suffix or draw.random() < 0.5 else data)
        for read in (
            lambda: detect_format(path),
            lambda: list(read_entries(path, name, "en", "de")),
        ):
            try:
                found = read()
            except InputError as error:
                named(error, path, number)
                continue
            for item in found if isinstance(found, list) else ():
                assert isinstance(item, Entry | BadLine), number
                text = item.raw if isinstance(item, BadLine) else item.source + item.target
                text.encode()


TASK = """format: 1
name: t
version: 1
license: CC0
languages: {a: A, b: B}
instruction: "From {source_language} to {target_language}.\\n"
example: "{source} = {target}\\n"
query: "{source} ="
answer: " {target}"
concepts: c.tsv
avoid: avoid.tsv
"""
TABLES = {
    "task.yaml": TASK,
    "c.tsv": "id\tpos\tclass\ta\tb\tb_alt\n"
    + "".join(f"i{k}\tn\tk\tx{k}\ty{k}\tz\n" for k in range(20)),
    "avoid.tsv": "source_lang\ttarget_lang\tid\tsibling\na\tb\ti0\ti1\n",
}  # fmt: skip


def test_tasks(tmp_path: Path) -> None:
    """A task that is read can be asked: prompts, examples and distractors."""
    path = tmp_path / "task.yaml"
    for number, draw in rounds("task", 2.0):
        for name, text in TABLES.items():
            (tmp_path / name).write_text(text)
        target = tmp_path / draw.choice(sorted(TABLES))
        target.write_bytes(bad_bytes(draw, target.read_bytes()))
        try:
            task_files(path)
            task = read_task(path)
        except InputError as error:
            named(error, tmp_path, number)
            continue
        assert isinstance(task, Task)
        for source, other in task.directions():
            for concept in draw.sample(task.concepts, min(3, len(task.concepts))):
                examples = task.draw_examples(
                    source, other, concept, min(2, len(task.concepts) - 1), 0, 0
                )
                words = [concept.words[source], concept.words[other]]
                asked = task.prompt(source, other, examples, concept.words[source])
                "".join((asked, *words, *task.distractors(source, other, concept))).encode()


def test_configs(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "configs" / "smoke" / "quickstart.yaml"
    path = tmp_path / "c.yaml"
    for number, draw in rounds("config", 0.2):
        path.write_bytes(bad_bytes(draw, config.read_bytes()))
        try:
            found = parse_config(["--config", str(path)], "run")
        except SettingsError as error:
            named(error, path, number)
        else:
            assert isinstance(found, RunConfig)


VALUES: tuple[Any, ...] = (
    None,
    -1,
    0,
    1.5,
    "",
    "x",
    "../../x",
    [],
    ["x"],
    {},
    {"class_path": "os"},
    True,
)


def test_configs_of_other_values(tmp_path: Path) -> None:
    """Any key with any other value, as YAML: refused by name, or a configuration."""
    config = Path(__file__).parents[2] / "configs" / "smoke" / "quickstart.yaml"
    path = tmp_path / "c.yaml"
    for number, draw in rounds("values", 0.3):
        value = yaml.safe_load(config.read_text())
        section = value
        key = draw.choice(sorted(section))
        while isinstance(section[key], dict) and section[key] and draw.random() < 0.8:
            section = section[key]
            key = draw.choice(sorted(section))
        section[key] = draw.choice(VALUES)
        path.write_text(yaml.safe_dump(value))
        try:
            assert isinstance(parse_config(["--config", str(path)], "run"), RunConfig)
        except SettingsError as error:
            named(error, path, number)


PROFILES = sorted((Path(__file__).parents[2] / "configs" / "launch").glob("*.yaml"))


def test_profiles(tmp_path: Path) -> None:
    """Of launches: damaged, and with any other value of any key."""
    path = tmp_path / "p.yaml"
    keys = [field.name for field in dataclasses.fields(Profile)]
    job_keys = [field.name for field in dataclasses.fields(JobSettings)]
    for number, draw in rounds("profile", 2.0):
        data = draw.choice(PROFILES).read_bytes()
        if draw.random() < 0.3:
            path.write_bytes(bad_bytes(draw, data))
        else:
            raw = yaml.safe_load(data)
            value = draw.choice(VALUES)
            if draw.random() < 0.5:
                raw[draw.choice(keys)] = draw.choice((value, {"x": value}, [value]))
            else:
                job = {draw.choice(job_keys): draw.choice((value, {"x": value}, [value]))}
                raw |= draw.choice(({"job": job}, {"stages": {"train": job}}, {"stages": job}))
            path.write_text(yaml.safe_dump(raw))
        try:
            assert isinstance(load_profile(str(path)), Profile)
        except SettingsError as error:
            named(error, path, number)


def other_value(draw: random.Random, value: Any) -> None:
    """Put another value somewhere into a JSON value, in place."""
    while True:
        keys = sorted(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw.choice(keys)
        if not isinstance(value[key], dict | list) or not value[key] or draw.random() < 0.3:
            value[key] = draw.choice(VALUES)
            return
        value = value[key]


def test_manifests(tmp_path: Path) -> None:
    """Also a run.json and the notes of an interrupted run: read, looked at, gone on with."""
    (tmp_path / "text").write_text("x")
    texts: dict[str, Input] = {
        "text": FilesInput.folder(tmp_path / "text"), "model": NamedInput("org/model@1"),
    }  # fmt: skip
    run = begin("tokenize", tmp_path / "a", {"k": 1}, texts)
    assert run is not None
    (run.out / "x.txt").write_text("x")
    run.finish({"n": 1})
    inputs = {**texts, "tokens": StageInput(tmp_path / "a", "tokenize")}
    good = tmp_path / "good"
    for name in ("done", "interrupted"):
        run = begin("count", good / name, {"k": 1}, inputs)
        assert run is not None
        (run.out / "x.txt").write_text("x")
        if name == "done":
            run.finish({"n": 1})
        else:
            run.lock.close()
    for number, draw in rounds("manifest", 3.0):
        name = draw.choice(sorted(path.name for path in good.iterdir()))
        folder = tmp_path / "tried"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good / name, folder)
        path = draw.choice(sorted(folder.rglob("*.json")))
        if draw.random() < 0.5:
            raw = read_json(path)
            other_value(draw, raw)
            path.write_text(json.dumps(raw))
        else:
            path.write_bytes(bad_bytes(draw, path.read_bytes()))
        for read in (read_manifest, verify_outputs, lineage):
            try:
                read(folder)
            except InputError as error:
                named(error, folder, number)
        try:
            again = begin("count", folder, {"k": 1}, inputs)
        except InputError as error:
            named(error, folder, number)
        else:
            if again is not None:
                assert again.id, number
                again.finish({"n": 1})
                verify_outputs(folder)
            read_manifest(folder, "count")
            lineage(folder)


def shard(draw: random.Random, path: Path) -> None:
    table = pa.table(
        {
            "id": [f"d{k}" for k in range(300)], "lang": ["en"] * 300, "source": ["s"] * 300,
            "group": pa.array([None] * 300, pa.string()), "n_chars": [5] * 300,
            "tokens": [[draw.randrange(5000) for _ in range(9)] for _ in range(300)],
        }
    )  # fmt: skip
    write_shard(path, table, ShardInfo("token", "f"))


def test_a_bit_of_a_shard(tmp_path: Path) -> None:
    """Wherever it flips, the reader says so or gives the very same documents."""
    path = tmp_path / "00000.parquet"
    shard(random.Random(1), path)
    good = path.read_bytes()
    expected = [batch.tokens.tolist() for batch in read_shard(path)]
    noticed = 0
    for number, draw in rounds("shard"):
        data = bytearray(good)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data))
        try:
            found = [batch.tokens.tolist() for batch in read_shard(path)]
        except InputError as error:
            named(error, path, number)
            noticed += 1
        else:
            assert found == expected, number
    assert noticed


def checkpoint(folder: Path, step: int) -> None:
    """A checkpoint of one matrix, as training.checkpoint writes it."""
    import torch

    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    save_file({"weight:weight:0": torch.arange(64.0)}, path / "shard-00000-of-00001.safetensors")
    write_json(path / "state.json", {"step": step, "metrics_bytes": 0, "pending": [[1.0, 2.0]]})
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        for file in sorted(path.iterdir())
    }
    write_json(path / "manifest.json", {"format_version": 2, "files": files})


def test_checkpoints(tmp_path: Path) -> None:
    """Whatever happens to the newest one, the one before is used."""
    import torch

    for number, draw in rounds("checkpoint"):
        folder = tmp_path / str(number)
        checkpoint(folder, 1)
        checkpoint(folder, 2)
        victim = draw.choice(sorted((folder / "step-00000002").iterdir()))
        good = victim.read_bytes()
        victim.write_bytes(bad_bytes(draw, good))
        found = newest_checkpoint(folder)
        assert found is not None, number
        harmless = victim.read_bytes() == good or victim.name == "manifest.json"
        assert found[1].step == 1 or (harmless and found[1].step == 2), number
        model = torch.nn.Module()
        model.weight = torch.nn.Parameter(torch.zeros(8, 8))
        with torch.no_grad():
            load_weights(found[0], model)
        assert model.weight.flatten().tolist() == list(range(64)), number


def test_models(tmp_path: Path, tokenizer: Path) -> None:
    """Other values and broken bytes in each file of a model's folder."""
    good, tried = tmp_path / "good", tmp_path / "tried"
    config = model_config(ModelSettings(hidden_size=8, n_layers=2, n_heads=2, max_length=16), 99, 0)
    from_config(config).save_pretrained(good)
    shutil.copyfile(tokenizer / "tokenizer.json", good / "tokenizer.json")
    assert load_model(str(good), None, "cpu", "float32").max_positions == 16
    for number, draw in rounds("model", 0.5):
        shutil.rmtree(tried, ignore_errors=True)
        shutil.copytree(good, tried)
        path = draw.choice([tried / "config.json", *sorted(tried.iterdir())])
        if path.suffix == ".json" and draw.random() < 0.7:
            raw = read_json(path)
            other_value(draw, raw)
            path.write_text(json.dumps(raw))
        else:
            path.write_bytes(bad_bytes(draw, path.read_bytes()))
        try:
            load_model(str(tried), None, "cpu", "float32")
        except PivotsError as error:
            named(error, tried, number)


def test_tokenizer_files(tmp_path: Path, tokenizer: Path) -> None:
    good = (tokenizer / "tokenizer.json").read_bytes()
    for number, draw in rounds("tokenizer"):
        (tmp_path / "tokenizer.json").write_bytes(bad_bytes(draw, good))
        (tmp_path / "tokenizer_config.json").write_bytes(bad_bytes(draw, b'{"eos_token": "</s>"}'))
        try:
            load_tokenizer(tmp_path).encode("w1 w2 x")
        except PivotsError as error:
            named(error, tmp_path, number)
