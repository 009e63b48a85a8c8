"""Fits what cores' figures cannot be looked up to published measurements of real boards, and finds the error left.

``published`` reads the measurements, ``networks`` counts what ncnn executes for them under QEMU, ``records`` keeps what
the fit needs of the counts, and ``fit`` fits the figures of each core and tests them on boards that were left out.
"""
