"""Every registered network: its size, its output, its names, and that tools can trace it."""

import pytest
import torch
from torch import fx, nn

from sparrow.kernels.errors import SparrowError
from sparrow.models import MODELS, build_model
from sparrow.models.resnet_cifar import CifarResNet, PaddedShortcut
from sparrow.models.resnet_imagenet import ResNet

# Trainable parameters: He et al. (CIFAR, option A: 0.27, 0.46, 0.66, 0.85 M); torchvision's published counts for the
# ImageNet networks; 4.66 M for VGG-small and 4.08 M for ProxylessNAS in the low-bit literature.
PARAMETERS = {
    "digits": 23_738,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    # Option B adds a 1x1 convolution and its batch norm to two blocks: 16*32 + 2*32 + 32*64 + 2*64 = 2752.
    "resnet20-b": 269_722 + 2752,
    "resnet32-b": 464_154 + 2752,
    "resnet44-b": 658_586 + 2752,
    "resnet56-b": 853_018 + 2752,
    "vgg-small": 4_660_106,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet-v2": 3_504_872,
    "mnasnet": 4_383_312,
    "proxylessnas": 4_080_512,
}

# One weight of each kind of layer, named as in the public weights, with its shape.
PUBLIC_NAMES = {
    "resnet20": {
        "layer1.0.conv1.weight": (16, 16, 3, 3),
        "layer3.2.bn2.running_var": (64,),
        "linear.weight": (10, 64),
    },
    "resnet20-b": {"layer2.0.shortcut.0.weight": (32, 16, 1, 1), "layer2.0.shortcut.1.bias": (32,)},
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer4.1.bn2.weight": (512,),
        "fc.bias": (1000,),
    },
    "resnet50": {
        "layer1.0.downsample.1.running_mean": (256,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "fc.weight": (1000, 2048),
    },
    "mobilenet-v2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.2.weight": (16,),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.17.conv.3.running_mean": (320,),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
    },
    "mnasnet": {
        "layers.3.weight": (32, 1, 3, 3),
        "layers.8.0.layers.0.weight": (48, 16, 1, 1),
        "layers.9.2.layers.3.weight": (120, 1, 5, 5),
        "layers.13.0.layers.7.bias": (320,),
        "layers.14.weight": (1280, 320, 1, 1),
        "classifier.1.bias": (1000,),
    },
    "proxylessnas": {
        "first_conv.conv.weight": (32, 3, 3, 3),
        "blocks.0.mobile_inverted_conv.point_linear.conv.weight": (16, 32, 1, 1),
        # Blocks 3 and 4 were removed by the search, so the next stage begins at 5.
        "blocks.5.mobile_inverted_conv.depth_conv.conv.weight": (96, 1, 7, 7),
        "blocks.21.mobile_inverted_conv.inverted_bottleneck.bn.weight": (1152,),
        "feature_mix_layer.conv.weight": (1280, 320, 1, 1),
        "classifier.linear.weight": (1000, 1280),
    },
}


@pytest.fixture(scope="module")
def built() -> dict[str, nn.Module]:
    return {name: build_model(name).eval() for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count(name: str, built: dict[str, nn.Module]) -> None:
    assert sum(parameter.numel() for parameter in built[name].parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", MODELS)
def test_traced_network_equals_the_original(name: str, built: dict[str, nn.Module]) -> None:
    model = built[name]
    images = torch.randn(2, *MODELS[name].input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = model(images)
        torch.testing.assert_close(fx.symbolic_trace(model)(images), scores, rtol=0, atol=0)
    assert scores.shape == (2, MODELS[name].classes)
    assert scores.isfinite().all()
    assert scores.std() > 0


@pytest.mark.parametrize("name", MODELS)
def test_every_activation_is_a_module_used_once(name: str, built: dict[str, nn.Module]) -> None:
    graph = fx.symbolic_trace(built[name]).graph
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    assert len(called) == len(set(called))
    functions = {getattr(node.target, "__name__", node.target) for node in graph.nodes if "function" in node.op}
    assert functions <= {"add", "getitem", "pad"}


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_names_and_shapes_of_the_public_weights(name: str, built: dict[str, nn.Module]) -> None:
    state = built[name].state_dict()
    assert {key: tuple(state[key].shape) for key in PUBLIC_NAMES[name]} == PUBLIC_NAMES[name]


def test_downsampling_by_five_halvings() -> None:
    for name in ("resnet18", "resnet50", "mobilenet-v2", "mnasnet", "proxylessnas"):
        before_pool: list[torch.Size] = []
        model = build_model(name, classes=2).eval()
        pool = next(module for module in model.modules() if isinstance(module, nn.AdaptiveAvgPool2d))
        pool.register_forward_hook(lambda _m, inputs, _o, seen=before_pool: seen.append(inputs[0].shape[2:]))
        with torch.no_grad():
            model(torch.zeros(1, 3, 64, 96))
        assert before_pool == [(2, 3)], name


def test_option_a_pads_zero_channels_on_both_sides() -> None:
    x = torch.randn(2, 16, 8, 8)
    y = PaddedShortcut(16, 32)(x)
    assert y.shape == (2, 32, 4, 4)
    torch.testing.assert_close(y[:, 8:24], x[:, :, ::2, ::2], rtol=0, atol=0)  # 32 // 4 new channels on each side
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_residual_blocks_add_their_input() -> None:
    """With the last batch norm of each residual branch at zero, a ResNet's blocks pass their input on."""
    model = CifarResNet(20).eval()
    for block in model.layer1:
        nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    torch.testing.assert_close(model.layer1(x), x, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["digits", "resnet20", "mnasnet"])
def test_equal_seeds_give_equal_weights(name: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_model(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("depth", [2, 21, -4])
def test_impossible_cifar_depth(depth: int) -> None:
    with pytest.raises(SparrowError, match=f"depth {depth}"):
        CifarResNet(depth)


def test_unknown_shortcut_and_imagenet_depth() -> None:
    with pytest.raises(SparrowError, match="'C'"):
        CifarResNet(20, shortcut="C")
    with pytest.raises(SparrowError, match="depth 34"):
        ResNet(34)


def test_digits_network_learns_the_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    torch.manual_seed(0)
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images))
    train, test = order[:1437], order[1437:]
    model = build_model("digits")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    epochs, batch = 8, 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * -(-len(train) // batch))
    for _ in range(epochs):
        for indices in train[torch.randperm(len(train))].split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[indices]), labels[indices]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        correct = (model.eval()(images[test]).argmax(1) == labels[test]).float().mean()
    assert correct > 0.98
