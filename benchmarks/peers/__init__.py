"""Other runtimes for ARM, counted and predicted in the same way as Sparrow.

peer.py      a peer, and its network converted by its own tools
NAME.py      one peer a file: how it converts a network, and how it computes one inside the userland
worker.py    what runs in a process of its own for a peer
pnnx.py      ONNX to PyTorch and to ncnn, for the peers that do not take ONNX
compare.py   the table: every peer, precision and CPU, and why one is missing
"""

from sparrow.benchmarks.peers.peer import Peer

# A peer is its file and its line here.
PEERS = {
    peer.name: peer
    for peer in (
        Peer("onnxruntime", runs=("onnxruntime", "numpy"), converts=(), precisions=("fp32", "int8")),
        Peer("litert", runs=("ai-edge-litert", "numpy"), precisions=("fp32", "int8"), converts=(
            "absl-py", "ai-edge-litert", "ai-edge-quantizer", "immutabledict", "jax", "jaxlib", "lark",
            "litert-converter", "litert-torch", "multipledispatch", "opt-einsum", "pnnx", "safetensors", "tabulate",
            "torchao", "tqdm", "xdsl")),
        Peer("ncnn", runs=("ncnn", "numpy"), converts=("ncnn", "pnnx"), precisions=("fp32", "fp16", "int8")),
        Peer("mnn", runs=("mnn", "numpy"), converts=("mnn",), precisions=("fp32", "fp16", "int8")),
        Peer("executorch", runs=("executorch", "numpy"), precisions=("fp32", "int8"), converts=(
            "executorch", "pandas", "pnnx", "python-dateutil", "ruamel.yaml", "six", "tabulate", "torchao")),
    )
}  # fmt: skip
