"""Arithmetic for kernels that Triton's language lacks, or that its interpreter gets wrong."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Hyperbolic tangent of float32 numbers of any shape."""
    # libdevice does not exist in the interpreter; the sigmoid is exact to one unit in the last
    # place of float32.
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def narrow(x, dtype: tl.constexpr, INTERPRET: tl.constexpr):
    """Cast float32 numbers to `dtype`, rounded to the nearest, to even where two are near.

    The interpreter's own cast to bfloat16 cuts bits off instead.
    """
    if INTERPRET:
        if dtype == tl.bfloat16:
            bits = x.to(tl.int32, bitcast=True)
            # Half of the last bit that stays, less one unit where that bit is even.
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
            x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)
