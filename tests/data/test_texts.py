"""Tables of texts -> tokens."""

import json

import pandas as pd
import pytest
import torch

from genmeasure.data.readers import load
from genmeasure.errors import InputError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["a", "b", "c", "d", "e", "f"]]


def refused(spec, end, **arguments):
    with pytest.raises(InputError) as error:
        load(str(spec), **arguments)
    assert str(error.value).endswith(end)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, torchvision):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    whole = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                         special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return str(folder)


def written(tmp_path, frame, name="a.tsv"):
    path = tmp_path / name
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if ".tsv" in name else ",", index=False)
    return path


SINGLE = pd.DataFrame({"label": ["1", "0", "1"], "sentence": ["a b c", "d", "e f"]})


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz", "a.csv", "a.parquet"])
def test_one_sentence_padded_to_the_longest_of_its_batch(tmp_path, tokenizer, name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    found = load(f"{written(tmp_path, SINGLE, name)}?tokenizer={tokenizer}", batch_size=2)
    first, second = list(found)
    assert first.inputs["input_ids"].tolist() == [[2, 4, 5, 6, 3], [2, 7, 3, 0, 0]]
    assert first.inputs["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert second.inputs["input_ids"].tolist() == [[2, 8, 9, 3]]
    assert found.labels.tolist() == [1, 0, 1]


def test_pairs_and_a_shorter_length(tmp_path, tokenizer):
    frame = pd.DataFrame({"sentence1": ["a b", "c"], "sentence2": ["d", "e f"], "label": [0, 1]})
    path = written(tmp_path, frame)
    assert next(iter(load(path.as_posix(), tokenizer=tokenizer))).inputs["input_ids"].tolist() == [
        [2, 4, 5, 3, 7, 3], [2, 6, 3, 8, 9, 3]]
    found = load(f"{path}?text=sentence2&max_length=3&tokenizer={tokenizer}")
    assert next(iter(found)).inputs["input_ids"].tolist() == [[2, 7, 3], [2, 8, 3]]
    assert found.notes == ("sentence2 as at most 3 tokens of TokenizersBackend",)


def test_labels_by_name_and_numbers_that_are_no_class(tmp_path, tokenizer):
    named = SINGLE.assign(label=["yes", "no", "yes"])
    found = load(f"{written(tmp_path, named)}?tokenizer={tokenizer}")
    assert found.labels.tolist() == [1, 0, 1]
    assert found.notes[0] == "classes no, yes"
    scores = load(f"{written(tmp_path, SINGLE.assign(label=[0.5, 1.0, 2.25]))}?tokenizer={tokenizer}")
    assert scores.labels.tolist() == [0.5, 1.0, 2.25]
    refused(f"{written(tmp_path, SINGLE.assign(label=[-1, -1, -1]))}?tokenizer={tokenizer}",
            "(data sets of a contest often hide the labels of their test split)")


def test_several_labels_per_text(tmp_path, tokenizer):
    path = written(tmp_path, SINGLE.assign(joy=[1, 0, 1], fear=[0, 0, 1]))
    assert load(f"{path}?tokenizer={tokenizer}&label=joy,fear").labels.tolist() == [[1, 0], [0, 0], [1, 1]]


def test_language_model_labels_are_the_tokens_without_padding(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("a b\n\nc\n")
    batch = next(iter(load(f"{tmp_path / 'a.txt'}?tokenizer={tokenizer}", task="causal-lm")))
    assert batch.targets.tolist() == [[2, 4, 5, 3], [2, 6, 3, -100]]
    assert batch.inputs["input_ids"].tolist() == [[2, 4, 5, 3], [2, 6, 3, 0]]


def test_tokens_are_labelled_by_the_first_of_their_word(tmp_path, tokenizer):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"tokens": [["a", "b c", "d"], ["e"]], "ner_tags": [[0, 2, 1], [1]]})
    found = load(f"{written(tmp_path, frame, 'a.parquet')}?tokenizer={tokenizer}&task=token-classification")
    batch = next(iter(found))
    assert batch.inputs["input_ids"].tolist() == [[2, 4, 5, 6, 7, 3], [2, 8, 3, 0, 0, 0]]
    assert batch.targets.tolist() == [[-100, 0, 2, -100, 1, -100], [-100, 1, -100, -100, -100, -100]]


def test_a_part_of_the_texts(tmp_path, tokenizer):
    path = written(tmp_path, pd.DataFrame({"text": list("abcdef") * 5, "label": [0, 1] * 15}))
    found = load(f"{path}?tokenizer={tokenizer}&holdout=0.2#validation")
    assert found.size == 6
    words = [WORDS[int(row[1])] for b in found for row in b.inputs["input_ids"]]
    assert found.labels.tolist() == ["abcdef".index(w) % 2 for w in words]


def saved_dataset(folder, parts):
    """As `datasets` writes with save_to_disk: Arrow streams, listed by state.json."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.ipc
    folder.mkdir(parents=True)
    files = []
    for i, frame in enumerate(parts):
        table = arrow.Table.from_pandas(frame, preserve_index=False)
        files.append({"filename": f"data-{i:05d}-of-{len(parts):05d}.arrow"})
        with pyarrow.ipc.new_stream(str(folder / files[-1]["filename"]), table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_folders_that_datasets_saved(tmp_path, tokenizer):
    frame = SINGLE.assign(label=[1, 0, 1])
    folder = saved_dataset(tmp_path / "one", [frame[:2], frame[2:]])
    assert load(f"{folder}?tokenizer={tokenizer}").labels.tolist() == [1, 0, 1]
    refused(f"{folder}?tokenizer={tokenizer}#train", "leave #train out, or make one with ?holdout=0.1")
    for split in ("train", "test"):
        saved_dataset(tmp_path / "two" / split, [frame])
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert load(f"{tmp_path / 'two'}?tokenizer={tokenizer}#test").size == 3
    refused(f"{tmp_path / 'two'}?tokenizer={tokenizer}", "choose one of #test, #train")
    (tmp_path / "one" / "data-00001-of-00002.arrow").write_bytes(b"damaged")
    refused(f"{folder}?tokenizer={tokenizer}", "copy or write it again")


def test_what_cannot_be_read(tmp_path, tokenizer):
    path = written(tmp_path, SINGLE)
    refused(path, "say which tokenizer makes tokens of them: ?tokenizer=FOLDER")
    refused(f"{path}?tokenizer={tmp_path}", "tokenizer_config.json, vocab.txt, vocab.json, tokenizer.model")
    refused(f"{path}?tokenizer={tokenizer}&text=txt", "choose one of label, sentence")
    refused(f"{path}?tokenizer={tokenizer}&task=summary", "known are: causal-lm, sequence-classification, "
                                                          "token-classification")
    refused(f"{path}?tokenizer={tokenizer}&max_length=1", "give a number of tokens, at least 2")
    refused(f"{path}?tokenizer={tokenizer}&mean=0.5", "which holds texts; leave it out")
    refused(f"{path}?tokeniser={tokenizer}", "did you mean 'tokenizer'?")
    refused(f"{path}#train", "leave #train out, or make one with ?holdout=0.1")
    refused(f"{written(tmp_path, SINGLE.rename(columns={'sentence': 'words'}))}?tokenizer={tokenizer}",
            "?text=COLUMN, or ?text=FIRST,SECOND for pairs")
    refused(f"{written(tmp_path, SINGLE[:0])}?tokenizer={tokenizer}", "at least one example is needed")
    for name in ("b.tsv.gz", "b.parquet"):
        (tmp_path / name).write_bytes(b"\x80 damaged")
        refused(f"{tmp_path / name}?tokenizer={tokenizer}", "copy or write it again")


def test_without_pyarrow(tmp_path, monkeypatch, tokenizer):
    import sys
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(f"{tmp_path / 'a.parquet'}?tokenizer={tokenizer}", 'install it with: pip install "genmeasure[parquet]"')


def test_the_same_tokens_on_every_pass(tmp_path, tokenizer):
    found = load(f"{written(tmp_path, SINGLE)}?tokenizer={tokenizer}", batch_size=2)
    first, second = ([b.inputs["input_ids"] for b in found] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
