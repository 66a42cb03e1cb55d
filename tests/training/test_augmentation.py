"""Images are moved and turned by chance, anew in each step."""

from dataclasses import replace

import pytest
import torch

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.training.augmentation import AUGMENTATIONS, augmented, crop, flip
from genmeasure.training.loop import Settings, fine_tune


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def test_crop_moves_whole_images_by_at_most_an_eighth():
    images = torch.arange(1.0, 1 + 2 * 16 * 24).reshape(1, 2, 16, 24).expand(500, -1, -1, -1)
    places = [(r, c) for r in range(-2, 3) for c in range(-3, 4)]
    twins = torch.stack([moved(images[0], *place) for place in places])
    fits = (crop(images, drawn())[:, None] == twins).flatten(2).all(2)
    assert (fits.sum(1) == 1).all()
    assert fits.any(0).all()  # each of 35 places, by all but 2e-5 of seeds
    assert torch.equal(images[0], torch.arange(1.0, 1 + 2 * 16 * 24).reshape(2, 16, 24))


def moved(image, down, right):
    """A literal twin, number by number."""
    found = torch.zeros_like(image)
    _, height, width = image.shape
    for r in range(height):
        for c in range(width):
            if 0 <= r + down < height and 0 <= c + right < width:
                found[:, r, c] = image[:, r + down, c + right]
    return found


def test_flip_turns_every_second_image():
    images = torch.rand(1000, 3, 4, 5, generator=drawn(1))
    found = flip(images, drawn())
    turned = (found == images.flip(3)).flatten(1).all(1)
    assert ((found == images).flatten(1).all(1) ^ turned).all()
    assert 420 <= int(turned.sum()) <= 580  # five standard deviations


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_seed_decides(name):
    batch = Batch.of((torch.rand(9, 3, 8, 8), torch.zeros(9, dtype=torch.int64)))
    one, same, other = (augmented(batch, name, drawn(seed)).inputs[0] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (name == "none")


def test_what_is_not_an_image_is_refused():
    for x in (torch.rand(4, 8), torch.zeros(4, 3, 8, 8, dtype=torch.int64)):
        with pytest.raises(InputError, match="of floating-point numbers, use augment='none' for others$"):
            augmented(Batch.of((x, torch.zeros(4, dtype=torch.int64))), "crop", drawn())
    with pytest.raises(InputError, match="did you mean 'crop-flip'"):
        Settings(augment="crop-flop")


@pytest.mark.parametrize("name", ["plain", "nso", "self-labeling"])
def test_a_run_is_resumed_to_the_same_bits_and_the_data_stays(name, net, train, validation, settings, tmp_path):
    def stop(record):
        if record["step"] == 6 and "loss" in record:
            raise KeyboardInterrupt
    settings = replace(settings, batch_size=64, epochs=3, augment="crop-flip")
    before = train.fingerprint
    whole = fine_tune(net, name, train, validation, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(net, name, train, validation, settings=settings, folder=tmp_path, save_every=5, log_every=1,
                  loggers=[stop])
    resumed = fine_tune(net, name, train, validation, settings=settings, folder=tmp_path)
    unchanged = fine_tune(net, name, train, validation, settings=replace(settings, augment="none"))
    states = [r.model.state_dict() for r in (whole, resumed, unchanged)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])
    assert type(train).from_arrays(torch.cat([b.inputs[0] for b in train]), train.labels,
                                   batch_size=train.lengths[0]).fingerprint == before
