"""Published data sets: the forms in which they are downloaded, and where.

What is `checked` was compared with public code that reads the same files; the others are written
down from memory. docs/data.md has the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from rdbcl_jax.data.layouts import LAYOUTS, Layout

ALL = "all"  # the rows of every split, in the same files


@dataclasses.dataclass(frozen=True)
class Copy:
    """One form in which a data set is downloaded.

    Attributes:
      of: where: a data set repository of the Hugging Face hub, or an address.
      layout: its name in `LAYOUTS`.
      files: per split, a pattern of files below the directory that was downloaded into. Splits that
        are not there are made: of the rows of `ALL`, else of those of train.
      images: the folder of the pictures below that directory, or that of each split, where the
        layout does not say.
      pictures: per split, the Parquet files of pictures that rows name by `picture_id`.
      picture_id: that column; the pictures' files have `id` and `image`.
      bounds: a column, and from which of its values on rows of `ALL` are validation, and test.
      class_names: a file whose lines name the class of a folder of pictures: `n01443537 goldfish`;
        files are then pictures, and their folders' classes the answers.
      captions: per split, a file of captions in COCO's form, whose image number n + 1 is row n's.
      checked: against which public code.
      note: what else there is to know.
    """

    of: str
    layout: str
    files: Mapping[str, str]
    images: str | Mapping[str, str] = ""
    pictures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    picture_id: str = ""
    bounds: tuple[str, str, str] | None = None
    class_names: str = ""
    captions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    checked: str = ""
    note: str = ""

    def read_as(self, part: str, source: Path) -> Layout:
        """The layout of the files of a part, its pictures joined, or in this copy's folder."""
        layout = LAYOUTS[self.layout]
        if self.pictures:
            return dataclasses.replace(layout, images=("image",))
        folder = self.images if isinstance(self.images, str) else self.images[part]
        return dataclasses.replace(layout, image_folder=str(source / folder)) if folder else layout


def _splits(pattern: str, validation: str = "validation", test: str = "test") -> dict[str, str]:
    names = {"train": "train", "validation": validation, "test": test}
    return {split: pattern.format(name) for split, name in names.items() if name}


_LMMS = "lmms-eval"  # github.com/EvolvingLMMs-Lab/lmms-eval
_HIDE = "HiDe-LLaVA and MCITlib"  # github.com/Ghy0501
_PARQUET = "data/{}-*.parquet"

_UCIT = {  # task: its folder, its layout, the files of train
    "imagenet_r": ("ImageNet-R", "ucit", "train.json"),
    "arxivqa": ("ArxivQA", "ucit_arxivqa", "train*.json"),
    "vizwiz_captions": ("VizWiz", "ucit_captions", "train.json"),
    "iconqa": ("IconQA", "ucit", "train.json"),
    "clevr_math": ("CLEVR*", "ucit", "train*.json"),
    "flickr30k": ("Flickr30k", "ucit_captions", "train*.json"),
}
_DOMAINS = {"rs": "RS", "med": "Med", "ad": "AD", "sci": "Sci", "fin": "Fin"}


def _ucit(folder: str, layout: str, train: str) -> Copy:
    test = {"test": f"instructions/{folder}/test*.json"}
    coco = {"test": f"instructions/{folder}/val_coco_type_3000.json"}
    return Copy(
        of="HaiyangGuo/UCIT",
        layout=layout,
        files={"train": f"instructions/{folder}/{train}", **test},
        images="datasets",
        captions=coco if layout == "ucit_captions" else {},
        checked=_HIDE,
        note="its pictures are those of the sets it is made of, below datasets/",
    )


# data set: task: its copies, the usual one first
DATA_SETS: Mapping[str, Mapping[str, tuple[Copy, ...]]] = {
    "scienceqa": {
        "scienceqa": (
            Copy(
                "lmms-lab/ScienceQA",
                "scienceqa",
                _splits("ScienceQA-IMG/{}-*.parquet"),
                checked=_LMMS,
            ),
            Copy("derek-thomas/ScienceQA", "scienceqa", _splits(_PARQUET), checked="its card"),
        )
    },
    "textvqa": {
        "textvqa": (
            Copy(
                "lmms-lab/textvqa",
                "textvqa",
                _splits(_PARQUET, validation="", test="validation"),
                checked=_LMMS,
                note="its test split has no answers: validation is tested on",
            ),
            Copy(
                "textvqa.org/dataset",
                "textvqa_original",
                {"train": "TextVQA_0.5.1_train.json", "test": "TextVQA_0.5.1_val.json"},
                images="train_images",  # those of validation, too
                checked="loaders of several repositories",
            ),
        )
    },
    "vizwiz": {
        "vizwiz": (
            Copy(
                "lmms-lab/VizWiz-VQA",
                "vizwiz",
                {ALL: "data/val-*.parquet"},
                checked=_LMMS,
                note="only val has answers: all splits are made of it",
            ),
            Copy(
                "vizwiz.org/tasks-and-datasets/vqa",
                "vizwiz",
                {"train": "Annotations/train.json", "test": "Annotations/val.json"},
                images={"train": "train", "test": "val"},
                note="its test has no answers: val is tested on",
            ),
        )
    },
    "gqa": {
        "gqa": (
            Copy(
                "lmms-lab/GQA",
                "gqa",
                _splits("{}_balanced_instructions/*.parquet", "val", "testdev"),
                pictures=_splits("{}_balanced_images/*.parquet", "val", "testdev"),
                picture_id="imageId",
                checked=_LMMS,
            ),
            Copy(
                "cs.stanford.edu/people/dorarad/gqa",
                "gqa",
                _splits("{}_balanced_questions.json", "val", "testdev"),
            ),
        )
    },
    "geometry3k": {
        "geometry3k": (
            Copy("hiyouga/geometry3k", "geometry3k", _splits(_PARQUET), checked="EasyR1, verl"),
        )
    },
    "pathvqa": {
        "pathvqa": (
            Copy(
                "flaviagiammarino/path-vqa",
                "pathvqa",
                _splits(_PARQUET),
                checked="loaders of several repositories",
            ),
        )
    },
    "superclevr": {
        "superclevr": (
            Copy(
                "RyanWW/Super-CLEVR",
                "superclevr",
                {ALL: "superCLEVR_questions_30k.json"},
                images="images",
                bounds=("image_filename", "superCLEVR_new_020000", "superCLEVR_new_025000"),
                checked="R1-V",
                note="unpack images.zip so that images/superCLEVR_new_000000.png is there",
            ),
        )
    },
    "clevr_math": {
        "clevr_math": (
            Copy(
                "dali-does/clevr-math",
                "clevr_math",
                _splits(_PARQUET),
                checked="its card",
                note="the repository is a script: fetch a Parquet copy, or write one with datasets",
            ),
        )
    },
    "iconqa": {
        "iconqa": (
            Copy(
                "lmms-lab/ICON-QA",
                "iconqa",
                _splits(_PARQUET, validation="") | {"train": "data/val-*.parquet"},
                checked=_LMMS,
                note="it has no train: val is learned",
            ),
        )
    },
    "arxivqa": {
        "arxivqa": (
            Copy(
                "MMInstruction/ArxivQA",
                "arxivqa",
                {ALL: "arxivqa.jsonl"},
                checked="loaders of several repositories",
                note="unpack images.tgz so that images/ is there",
            ),
            Copy("vidore/arxivqa_test_subsampled", "arxivqa", {ALL: "data/test-*.parquet"}),
        )
    },
    "flickr30k": {
        "flickr30k": (
            Copy(
                "lmms-lab/flickr30k",
                "flickr30k",
                {ALL: "data/test-*.parquet"},
                checked=_LMMS,
                note="all is in test: splits are made of it",
            ),
        )
    },
    "imagenet_r": {
        "imagenet_r": (
            Copy(
                "people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                "imagenet_r",
                {ALL: "imagenet-r/n*/*"},
                class_names="imagenet-r/README.txt",
            ),
        )
    },
    "ucit": {task: (_ucit(*where),) for task, where in _UCIT.items()},
    "mllm_cl": {
        task: (
            Copy(
                "Impression2805/MLLM-CL",
                "mllm_cl",
                {"train": f"{folder}/train.json", "test": f"{folder}/test.json"},
                images=folder,
                checked="the authors' scripts",
            ),
        )
        for task, folder in _DOMAINS.items()
    },
}
