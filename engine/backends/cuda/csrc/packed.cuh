// Eight 16-bit values as they lie in memory, 16 bytes, and as floats.
#pragma once
#include "intrinsics.cuh"

// Values 2i and 2i + 1; with a constant i no more than a register's name.
DEVICE unsigned word(uint4 packed, int i) {
    return i == 0 ? packed.x : i == 1 ? packed.y : i == 2 ? packed.z : packed.w;
}

template <class T>
DEVICE void unpack_eight(float (&values)[8], uint4 packed) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        values[2 * i] = low_float<T>(word(packed, i));
        values[2 * i + 1] = high_float<T>(word(packed, i));
    }
}

template <class T>
DEVICE uint4 pack_eight(const float (&values)[8]) {
    return make_uint4(pack2<T>(values[0], values[1]), pack2<T>(values[2], values[3]), pack2<T>(values[4], values[5]),
                      pack2<T>(values[6], values[7]));
}
