"""Which backbones to take when nobody has named any: pre-trained ones on this machine before random ones."""

from __future__ import annotations

from offshelf.backbones import embedded, hub

POPULAR = (
    "vit_small_patch14_dinov2.lvd142m",
    "convnext_tiny.in12k_ft_in1k",
    "resnet50.a1_in1k",
    "resnet50.tv_in1k",
    "convnext_tiny.fb_in22k_ft_in1k",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "densenet121.ra_in1k",
    "densenet121.tv_in1k",
    "efficientnet_b0.ra_in1k",
    "inception_v3.tv_in1k",
    "vgg16_bn.tv_in1k",
    "vgg16.tv_in1k",
    "mobilenetv3_large_100.ra_in1k",
    "mobilenetv2_100.ra_in1k",
    "regnety_002.pycls_in1k",
    "resnet101.a1_in1k",
    "resnet34.a1_in1k",
    "resnet18.a1_in1k",
    "resnet18.tv_in1k",
    "mobilenetv3_small_100.lamb_in1k",
)
"""Weights that many people have, in the order in which they serve as a default."""

TINY_DESIGNS = (
    "test_byobnet",
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_nfnet",
    "test_mambaout",
    "test_efficientnet_gn",
    "test_convnext3",
    "test_efficientnet_evos",
)
"""timm's smallest convolutional networks, different designs first; 0.1 to 0.4 million parameters each."""

EIGHT = 8
_FETCH = "with a network connection, pre-trained weights such as resnet50.a1_in1k can be named and are fetched"


def default_backbones(reproductive: bool = False) -> tuple[list[str], str]:
    """Names for `load_backbone`, and one sentence that says why these.

    Parameters
    ----------
    reproductive : bool
        Exactly eight convolutional networks of different design, as the method of reproductive features asks for;
        otherwise one network.

    Returns
    -------
    tuple
        The names, and the reason; it names every network whose weights are random.
    """
    cached = set(hub.cached_names())
    popular = [name for name in POPULAR if name in cached]
    return _eight(popular) if reproductive else _one(popular)


def _one(popular: list[str]) -> tuple[list[str], str]:
    if popular:
        others = f" (also there: {', '.join(popular[1:])})" if popular[1:] else ""
        return popular[:1], f"{popular[0]} is used: its pre-trained weights are on this machine{others}"
    if embedded.EMBEDDED:
        name = embedded.EMBEDDED[0]
        return [name], f"{name} comes with the package, and no popular weights are on this machine; {_FETCH}"
    name = f"{TINY_DESIGNS[0]}.random"
    return [name], f"{name} has random weights: no pre-trained weights are on this machine; {_FETCH}"


def _eight(popular: list[str]) -> tuple[list[str], str]:
    names = [name for name in popular if "vit" not in name][:EIGHT]
    pretrained = [*names, *embedded.EMBEDDED][:EIGHT]
    designs = {name.partition(".")[0] for name in pretrained}
    random = [f"{design}.random" for design in TINY_DESIGNS if design not in designs][: EIGHT - len(pretrained)]
    if not random:
        small = sum(name in embedded.EMBEDDED for name in pretrained)
        shipped = f"; {small} of them are the small ones of the package; {_FETCH}" if small else ""
        return (
            pretrained,
            "eight convolutional networks whose pre-trained weights are on this machine: "
            f"{', '.join(pretrained)}{shipped}",
        )
    known = f"{', '.join(pretrained)} with pre-trained weights, and " if pretrained else ""
    return [
        *pretrained,
        *random,
    ], f"eight small convolutional designs: {known}with random weights {', '.join(random)}; {_FETCH}"
