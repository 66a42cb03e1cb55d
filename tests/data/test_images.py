"""Image folders, tables of image files, and the binaries of CIFAR and MNIST."""

import gzip
import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from genmeasure.data.images import pixels
from genmeasure.data.readers import load
from genmeasure.errors import InputError

GENERATOR = np.random.default_rng(0)
PICTURES = GENERATOR.integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)


def refused(spec, end):
    with pytest.raises(InputError) as error:
        load(str(spec))
    assert str(error.value).endswith(end)
    return str(error.value)


def content(batches):
    return torch.cat([b.inputs[0] for b in batches]), batches.labels.tolist()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for i, picture in enumerate(PICTURES):
        place = root / ("train" if i < 4 else "test") / ("cat" if i % 2 else "ant")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i}.png")
    (root / "train" / "cat" / "notes.txt").touch()
    return root


def test_a_folder_of_classes_below_splits(folder):
    found = load(f"{folder}#train")
    x, y = content(found)
    assert y == [0, 0, 1, 1]
    assert torch.equal(x, torch.from_numpy(PICTURES[[0, 2, 1, 3]]).permute(0, 3, 1, 2) / 255)
    assert found.notes == ("classes ant, cat", "pixels scaled to 0..1")
    assert content(load(f"{folder / 'train'}"))[1] == y
    assert load(f"{folder}#test").size == 2


def test_grey_and_normalised(folder):
    found = load(f"{folder}?channels=1&mean=0.5&std=0.25#test")
    x, _ = content(found)
    grey = np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in PICTURES[[4, 5]]])
    assert np.allclose(x[:, 0].numpy(), (grey / 255 - 0.5) / 0.25, atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (31, 31)])
def test_cut_as_torchvision_does(tmp_path, torchvision, width, height):
    Image.fromarray(GENERATOR.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    from torchvision.transforms import CenterCrop, Compose, Resize
    with Image.open(tmp_path / "a.png") as picture:
        expected = np.asarray(Compose([Resize(20), CenterCrop(17)])(picture))
    assert np.array_equal(pixels([tmp_path / "a.png"], resize=20, crop=17, channels=3)[0], expected)


def test_folders_that_are_laid_out_otherwise(folder, tmp_path):
    refused(folder, "choose one of #test, #train")
    refused(f"{folder}#val", "choose one of #test, #train")
    refused(f"{folder / 'train'}#test", "leave #test out, or make one with ?holdout=0.1")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "give a folder with one folder of images per class")
    Image.fromarray(PICTURES[0][:5]).save(folder / "train" / "ant" / "z.png")
    refused(f"{folder}#train", "make them alike with ?resize=256&crop=224")
    assert load(f"{folder}?resize=8&crop=8#train").size == 5
    refused(f"{folder}?crop=8#train", "add ?resize=8 or more")
    (folder / "train" / "ant" / "z.png").write_bytes(b"no image")
    refused(f"{folder}?resize=8&crop=8#train", "copy it again or take it away")
    for argument, end in (("resize=0", "give a number of pixels"), ("channels=2", "give 1 or 3"),
                          ("crp=3", "did you mean 'crop'?")):
        refused(f"{folder}?{argument}#test", end)


def test_a_table_of_image_files_with_several_labels(folder, tmp_path):
    rows = ["file,findings", "train/ant/0.png,Mass|Edema", "train/cat/1.png,", "test/ant/4.png,Edema"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    found = load(f"{tmp_path / 'list.csv'}?image=file&folder={folder}&label=findings&separator=|")
    x, y = content(found)
    assert y == [[1, 1], [0, 0], [1, 0]]
    assert torch.equal(x[2], torch.from_numpy(PICTURES[4]).permute(2, 0, 1) / 255)
    assert found.notes[0] == "classes Edema, Mass"
    (tmp_path / "columns.csv").write_text("file,a,b\ntrain/ant/0.png,1,0\ntrain/cat/1.png,0,1\n")
    spec = f"{tmp_path / 'columns.csv'}?image=file&folder={folder}"
    assert content(load(f"{spec}&label=a,b"))[1] == [[1, 0], [0, 1]]
    assert content(load(f"{spec}&label=b"))[1] == [0, 1]
    refused(f"{spec}&label=a,file", "several labels per example are 0 or 1")
    refused(f"{spec}&label=c", "choose one of file, a, b")
    refused(spec, "say which one holds the label: ?label=COLUMN")


def cifar(rows, labels):
    pictures = GENERATOR.integers(0, 256, (rows, 3, 32, 32), dtype=np.uint8)
    numbers = GENERATOR.integers(0, 10, (rows, labels), dtype=np.uint8)
    return pictures, numbers, b"".join(n.tobytes() + p.tobytes() for n, p in zip(numbers, pictures, strict=True))


def test_cifar_batches_and_archive(tmp_path):
    made = [cifar(3, 1) for _ in range(3)]
    (tmp_path / "data_batch_1.bin").write_bytes(made[0][2])
    x, y = content(load(str(tmp_path / "data_batch_1.bin")))
    assert torch.equal(x, torch.from_numpy(made[0][0]) / 255)
    assert y == made[0][1][:, 0].tolist()
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, (_, _, data) in zip(("data_batch_2.bin", "data_batch_1.bin", "test_batch.bin"), made, strict=True):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    spec = f"{tmp_path / 'cifar-10-binary.tar.gz'}"
    x, y = content(load(f"{spec}?mean=0.5&std=0.5#train"))
    assert torch.equal(x, (torch.from_numpy(np.concatenate([made[1][0], made[0][0]])) / 255 - 0.5) / 0.5)
    assert content(load(f"{spec}#test"))[1] == made[2][1][:, 0].tolist()
    whole = (tmp_path / "cifar-10-binary.tar.gz").read_bytes()
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(whole[:len(whole) // 2])
    refused(f"{spec}#test", "copy or download it again")


def test_cifar100_has_a_coarse_and_a_fine_label(tmp_path):
    _, numbers, data = cifar(4, 2)
    (tmp_path / "train.bin").write_bytes(data)
    assert content(load(str(tmp_path / "train.bin")))[1] == numbers[:, 1].tolist()
    (tmp_path / "train.bin").write_bytes(data[:-1])
    refused(tmp_path / "train.bin", "copy or download it again")


@pytest.mark.parametrize("packed", [True, False])
def test_mnist(tmp_path, packed):
    pictures, labels = PICTURES[..., 0], np.arange(6, dtype=np.uint8)
    end = ".gz" if packed else ""
    for name, array in ((f"train-images-idx3-ubyte{end}", pictures), (f"train-labels-idx1-ubyte{end}", labels)):
        data = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
        (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    x, y = content(load(str(tmp_path / f"train-images-idx3-ubyte{end}")))
    assert torch.equal(x, torch.from_numpy(pictures)[:, None] / 255)
    assert y == labels.tolist()
    (tmp_path / f"train-labels-idx1-ubyte{end}").unlink()
    refused(tmp_path / f"train-images-idx3-ubyte{end}", "copy or download it again")
