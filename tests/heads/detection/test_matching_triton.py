import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_kernels_in_the_interpreter_give_what_operators_of_torch_give():
    worker = Path(__file__).with_name("interpreted_matching.py")
    done = subprocess.run([sys.executable, worker], capture_output=True, text=True)
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_fused_products_and_sums(capability):
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trunkline.heads.detection import matching_triton as kernels

    types = {"boxes": "*fp32", "truth": "*fp32", "labels": "*i64", "crowd": "*i1", "highest": "*i32"}
    types |= {"index": "*i64", "positive": "*i1", "negative": "*i1"}
    types |= dict.fromkeys(("step", "number", "rows"), "i32")
    types |= dict.fromkeys(("fg_iou", "bg_iou", "crowd_overlap"), "fp32")
    for kernel in (kernels._highest_of_objects, kernels._closest_of_boxes):
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        block = {(kernel.arg_names.index("block"),): kernels.BLOCK}
        source = ASTSource(kernel, signature=signature, constexprs=block)
        target = GPUTarget("cuda", capability, 32)
        made = compile_kernel(source, target=target, options={"enable_fp_fusion": False})
        # Both passes must round alike: the second looks for the number that the first has found.
        assert "fma" not in made.asm["ptx"] and made.asm["cubin"]
