"""The written list of methods. One entry a method; the verbs, the claims, the docs and the tests all read it.

Imports nothing of ours; ``where`` is loaded when asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from offshelf.errors import UsageError, near


@dataclass(frozen=True)
class Method:
    """One published method as it stands in this library."""

    slug: str
    where: str  # "module:Class"
    part: str  # the room it lives in
    title: str
    authors: str
    year: int
    paper: str
    purpose: str  # one sentence: what it is for, in a user's words
    parts: tuple[str, ...]  # the classes and functions that make it up
    command: str
    claim: str  # the paper's headline claim, in our words

    def load(self) -> Any:
        """The class itself."""
        module, _, name = self.where.partition(":")
        return getattr(import_module(module), name)


METHODS: dict[str, Method] = {
    method.slug: method
    for method in (
        Method(
            slug="reproductive-features",
            where="offshelf.transfer.reproductive_features:ReproductiveFeatures",
            part="transfer",
            title="Deep reproductive feature generation framework for the diagnosis of COVID-19 and viral pneumonia "
            "using chest X-ray images",
            authors="Kayan, Koksal, Sevinc, Gumus",
            year=2023,
            paper="arXiv 2304.10677",
            purpose="Compress what several pre-trained networks say about the four sections of a picture into one "
            "short, label-free description that serves several small classification tasks, such as chest X-rays.",
            parts=("DeepFeatures", "ReproductiveFeatures", "make_head"),
            command="offshelf fit DATA --grid 2x2 --reproductive",
            claim="Codes learnt without labels from eight CNNs over four sections classify at least as well as the "
            "best single CNN on whole pictures and as a supervised bottleneck of equal width, and one set of codes "
            "serves both the two-class and the three-class task.",
        ),
        Method(
            slug="off-the-shelf",
            where="offshelf.transfer.off_the_shelf:OffTheShelf",
            part="transfer",
            title="CNN Features off-the-shelf: an Astounding Baseline for Recognition",
            authors="Razavian, Azizpour, Sullivan, Carlsson",
            year=2014,
            paper="arXiv 1403.6382",
            purpose="Use the features of a pre-trained network unchanged, with a linear support vector machine for "
            "classification or a distance for finding the same object again; the baseline to beat with few labels.",
            parts=("DeepFeatures", "OffTheShelf", "RetrievalWhitening", "SimilarPictures", "spatial_search"),
            command="offshelf fit DATA --heads off-the-shelf --copies 16",
            claim="Frozen, length-normalised features of a network trained for another task, with a linear SVM, beat "
            "classical features and a network trained from scratch on the same few labels; jittered copies and a "
            "signed power improve them further.",
        ),
        Method(
            slug="covid-screening",
            where="offshelf.transfer.covid_screening:CovidScreening",
            part="transfer",
            title="Can AI help in screening Viral and COVID-19 pneumonia?",
            authors="Chowdhury, Rahman, Khandakar, Mazhar, Kadir, Mahbub, Islam, Khan, Iqbal, Al Emadi, Reaz, Islam",
            year=2020,
            paper="arXiv 2003.13145",
            purpose="Fine-tune several pre-trained networks on a few hundred X-rays, with and without augmentation, "
            "and report cross-validated rates with intervals and maps of where the networks looked.",
            parts=("CovidScreening", "screening_table", "Screening", "class_activation"),
            command="offshelf screen DATA",
            claim="On a small set of chest X-rays, fine-tuning a network from pre-trained weights beats training it "
            "from scratch, and geometric augmentation raises the out-of-fold accuracy further.",
        ),
        Method(
            slug="spark",
            where="offshelf.pretrain.spark:SparK",
            part="pretrain",
            title="Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling",
            authors="Tian, Jiang, Diao, Lin, Wang, Yuan",
            year=2023,
            paper="arXiv 2301.03580",
            purpose="Let a convolutional network learn from your pictures without labels: it paints hidden cells from "
            "what is visible, and is then fine-tuned.",
            parts=("SparK", "make_sparse", "make_dense"),
            command="offshelf pretrain DATA --method spark",
            claim="An ordinary convolutional network that is pre-trained by sparse, hierarchical masked modelling on "
            "pictures without labels is fine-tuned to a higher accuracy than the same network from scratch.",
        ),
        Method(
            slug="selfie",
            where="offshelf.pretrain.selfie:Selfie",
            part="pretrain",
            title="Selfie: Self-supervised Pretraining for Image Embedding",
            authors="Trinh, Luong, Le",
            year=2019,
            paper="arXiv 1906.02940",
            purpose="Let a convolutional network learn from your pictures without labels: its first stages learn to "
            "put hidden patches back where they came from, and the whole is then fine-tuned.",
            parts=("Selfie",),
            command="offshelf pretrain DATA --method selfie",
            claim="The first three groups of blocks of a residual network, pre-trained to choose hidden patches of a "
            "picture, give a higher accuracy, and a smaller spread over runs, when the whole network is fine-tuned on "
            "few labels than training from scratch does.",
        ),
        Method(
            slug="sit",
            where="offshelf.pretrain.sit:SiT",
            part="pretrain",
            title="SiT: Self-supervised vIsion Transformer",
            authors="Atito, Awais, Kittler",
            year=2021,
            paper="arXiv 2104.03602",
            purpose="Let a vision transformer learn from a few thousand pictures without labels: it restores corrupted "
            "pictures, tells how they were turned and tells them apart, and is then fine-tuned.",
            parts=("SiT",),
            command="offshelf pretrain DATA --method sit",
            claim="A vision transformer that learns reconstruction, rotation and contrast together, with learnt "
            "weights, is fine-tuned on few labels to a higher accuracy than the same network from scratch, and the "
            "three tasks are at least as good as reconstruction alone.",
        ),
        Method(
            slug="mae-thorax",
            where="offshelf.pretrain.mae_thorax:MAE",
            part="pretrain",
            title="Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification",
            authors="Xiao, Bai, Yuille, Zhou",
            year=2023,
            paper="arXiv 2210.12843",
            purpose="Let a vision transformer learn from your X-rays or other pictures of one kind, without labels: it "
            "paints nine tenths of a picture from the rest, quickly, and is then fine-tuned.",
            parts=("MAE", "encode_visible"),
            command="offshelf pretrain DATA --method mae-thorax",
            claim="A small vision transformer that is pre-trained on chest X-rays by masking 90 % of their patches "
            "after gentle crops classifies them better than the same network from scratch, and better than with the "
            "masking and crops that suit natural images.",
        ),
        Method(
            slug="battle-of-the-backbones",
            where="offshelf.evaluate.battle.gauntlet:Gauntlet",
            part="evaluate",
            title="Battle of the Backbones: A Large-Scale Comparison of Pretrained Models across Computer Vision Tasks",
            authors="Goldblum, Souri, Ni, Shu, Prabhu, Somepalli, Chattopadhyay, Ibrahim, Bardes, Hoffman, Chellappa, "
            "Wilson, Goldstein",
            year=2023,
            paper="arXiv 2310.19909",
            purpose="Choose a backbone: hold many against each other over many data sets and tasks, with ranks that "
            "have intervals and groups that cannot be told apart.",
            parts=("Gauntlet", "z_scores", "standing", "comparisons", "correlate", "scaling"),
            command="offshelf battle DATA --backbones resnet18.a1_in1k resnet18.random",
            claim="Over a diverse set of backbones the tasks rank them alike, so that one overall score means "
            "something, and supervised convolutional networks lead vision transformers of their size.",
        ),
        Method(
            slug="multilabel-imagenet",
            where="offshelf.evaluate.multilabel_imagenet:MultiLabelReport",
            part="evaluate",
            title="Re-assessing ImageNet: How aligned is its single-label assumption with its multi-label nature?",
            authors="Anzaku, Mousavi, Van Messem, De Neve",
            year=2024,
            paper="arXiv 2412.18409",
            purpose="Measure a one-label classifier on pictures that show several things: count every valid answer, "
            "and tell how much of a drop between two test sets is only that one has more such pictures.",
            parts=("MultiLabelReport", "drop_decomposition", "patch_composites", "real_labels"),
            command="offshelf evaluate RUN DATA --multilabel COLUMN",
            claim="When two test sets differ in their share of pictures with several objects, top-1 against one label "
            "shows a drop of accuracy while accuracies that know the sets of labels do not, and networks trained on "
            "one label a picture name several valid ones.",
        ),
        Method(
            slug="b-cosification",
            where="offshelf.backbones.b_cosification:BCosNetwork",
            part="backbones",
            title="B-cosification: Transforming Deep Neural Networks to be Inherently Interpretable",
            authors="Arya, Rao, Boehle, Schiele",
            year=2024,
            paper="arXiv 2411.00715",
            purpose="Make a network that is trained already explain itself: rewritten and fine-tuned briefly, each of "
            "its answers is exactly a sum over pixels, which can be looked at.",
            parts=("bcosify", "BCosNetwork", "explain_b_cos", "b_cosify_tower"),
            command="offshelf finetune DATA --backbone test_resnet.offshelf_finetune_cifar10 --b-cos 2",
            claim="A trained network that is rewritten into a B-cos network and briefly fine-tuned is more accurate "
            "than a B-cos network trained from scratch for as many epochs, and its explanations point at the right "
            "place more often than the untouched network's input x gradient.",
        ),
    )
}


def get(slug: str) -> Method:
    """The method of that name.

    Raises
    ------
    UsageError
        Naming near ones.
    """
    if slug not in METHODS:
        raise UsageError(f"no method named {slug!r}{near(slug, METHODS)} `offshelf methods` lists all {len(METHODS)}.")
    return METHODS[slug]
