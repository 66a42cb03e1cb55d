"""Which measure ranks fine-tuned checkpoints by their generalization gap? A transformer on sentences.

MiniLM-L6's last block and a new head, fine-tuned on 40 sentences of film reviews (MR): `genmeasure run
analysis/measure_vs_gap_text.py --out out/measure_vs_gap_text`, then `python figures/measure_vs_gap.py`. `--full` is the
setting of Ju, Li & Zhang (2022): BERT-Base on MRPC and SST-2, every layer fine-tuned.
"""

from pathlib import Path

import pretrained

from genmeasure.fine_tuned import FineTuned, make
from genmeasure.subject import SubjectFiles
from genmeasure.training.settings import Settings

SCALES = ("quick", "small", "full")
BY, CLUSTER, AXES = pretrained.BY, pretrained.CLUSTER, pretrained.AXES
REQUESTS = pretrained.ranked(rtol=0.5, steps=3)
METHODS = pretrained.without(
    *((method, "weak") for method in ("label smoothing", "mixup", "noise injection", "SAM", "NSO")))


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    if scale == "full":
        methods = pretrained.METHODS | pretrained.ball(1.0, 0.3, 8.0)
        return [one for data in ("mrpc", "sst-2") for one in pretrained.full(
            Path("out/measure_vs_gap_text-full"), data, "bert-base-uncased", methods, (0.0, 0.4), range(3))]
    quick = scale == "quick"
    folder = Path("out/measure_vs_gap_text-quick" if quick else "out/measure_vs_gap_text")
    methods = METHODS | pretrained.ball(1.0, 0.3, 3.0)
    words = f"{pretrained.__file__}:sentences?name=mr_rt_polarity"
    return pretrained.grid(
        folder, pretrained.few(methods) if quick else methods, (0.0, 0.4), range(1 if quick else 2),
        settings=Settings(epochs=2 if quick else 8, batch_size=16, learning_rate=5e-4, schedule="cosine", device="cpu"),
        model=f"{pretrained.__file__}:last_block", start=pretrained.block_start(folder / "checkpoints"),
        train=f"{words}&rows={16 if quick else 40}&noise={{noise}}", validation=f"{words}&rows=64&skip=1000",
        test=f"{words}&rows={64 if quick else 600}&skip=2000", head="head")


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    return make(CHECKPOINTS(scale), device="auto" if scale == "full" else "cpu")
