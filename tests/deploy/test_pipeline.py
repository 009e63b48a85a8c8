"""What the list of phases needs of TVM."""

import pytest
import tvm

from sparrow.deploy import pipeline


def test_an_interruption_inside_of_a_pass_stays_one() -> None:
    assert pipeline.PHASES

    @tvm.ir.transform.module_pass(opt_level=0)
    def interrupted(module: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tvm.IRModule())
