"""The steps of the ONNX front end, one a file; ``deploy/frontend_onnx.py`` lists them in order.

    network.py     what the front end hands on
    graph.py       looking things up in a graph and replacing nodes
    read.py        reading and checking a file
    shapes.py      pinning the inputs' shapes, and stating those of all tensors
    folding.py     one operator set, functions inlined, constants computed
    precision.py   half and double precision as float32
    quantized.py   QLinear operators as QuantizeLinear and DequantizeLinear, uint8 grids as int8 grids
    operators.py   operators that TVM's importer lacks or gets wrong, written as ones that it knows
    matrices.py    convolutions and matrix products in the forms that Sparrow's kernels take
    recurrent.py   LSTM, GRU and RNN, written out step by step
    importing.py   into Relax, and what is in the way of it
"""
