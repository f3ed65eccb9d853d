// Stage 6: packs. A thread reads and writes WIDTH neighbouring elements at once, 16 bytes where the
// span allows. There are fewer and wider loads, more bytes are on their way at any time, and the
// work of the loop itself is shared by WIDTH elements. Sums and second kernel are those of stage 5.
//
// ../rational.cu works in the same way. It adds blocks that cover several narrow groups, sums that
// are put aside before their chains of additions grow long, coefficients that groups share, and
// elements so large that their powers overflow.

#include "element.cuh"

struct alignas(WIDTH * sizeof(TYPE)) Pack { TYPE element[WIDTH]; };

extern "C" __global__ void backward(const Pack *g, const Pack *x, const float *a, const float *b,
                                    Pack *dx, float *partial,
                                    int rows, int groups, int packs) {
    float numerator[M + 1], denominator[N], terms[COEFFICIENTS], sums[COEFFICIENTS] = {};
    load(a, b, numerator, denominator);
    // WIDTH elements make a pack: the walk is the same, over shorter rows
#pragma unroll 1
    for (Walk walk(rows, groups, packs); walk.unfinished(); walk.advance()) {
        const Pack gradient = g[walk.offset], in = x[walk.offset];
        Pack out;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            out.element[e] = TYPE(gradients(float(gradient.element[e]), float(in.element[e]),
                                            numerator, denominator, terms));
            for (int k = 0; k < COEFFICIENTS; k++) sums[k] += terms[k];
        }
        dx[walk.offset] = out;
    }

    __shared__ float warps[THREADS / 32][COEFFICIENTS];
    for (int k = 0; k < COEFFICIENTS; k++) {
        for (int half = 16; half; half /= 2)
            sums[k] += __shfl_down_sync(0xffffffff, sums[k], half);
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32][k] = sums[k];
    }
    // no thread may read before the sums of all warps are there
    __syncthreads();
    if (threadIdx.x < COEFFICIENTS) {
        float total = 0;
        for (unsigned warp = 0; warp < blockDim.x / 32; warp++) total += warps[warp][threadIdx.x];
        partial[(blockIdx.x * COEFFICIENTS + threadIdx.x) * gridDim.y + blockIdx.y] = total;
    }
}

// One warp for each coefficient of each group. partial is (groups, COEFFICIENTS, parts).
extern "C" __global__ void finish(const float *partial, float *da, float *db, int parts) {
    double total = 0;
    for (int part = threadIdx.x; part < parts; part += 32)
        total += partial[blockIdx.x * parts + part];
    for (int half = 16; half; half /= 2) total += __shfl_down_sync(0xffffffff, total, half);
    if (threadIdx.x == 0)
        *destination(da, db, blockIdx.x / COEFFICIENTS, blockIdx.x % COEFFICIENTS) = total;
}
