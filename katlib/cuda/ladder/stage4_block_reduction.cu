// Stage 4: a block adds up the sums of its threads before it goes to global memory. Inside a warp,
// threads read each other's registers by shuffles: each step halves the number of sums, and five
// steps turn 32 into one. The sums of the warps meet in shared memory. Ten global atomics are left
// for each block. That is fast, but blocks still finish in any order, and float sums depend on it.

#include "element.cuh"

extern "C" __global__ void backward(const TYPE *g, const TYPE *x, const float *a, const float *b,
                                    TYPE *dx, float *da, float *db,
                                    int rows, int groups, int span) {
    float numerator[M + 1], denominator[N], terms[COEFFICIENTS], sums[COEFFICIENTS] = {};
    load(a, b, numerator, denominator);
    for (Walk walk(rows, groups, span); walk.unfinished(); walk.advance()) {
        const int i = walk.offset;
        dx[i] = TYPE(gradients(float(g[i]), float(x[i]), numerator, denominator, terms));
        for (int k = 0; k < COEFFICIENTS; k++) sums[k] += terms[k];
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
        atomicAdd(destination(da, db, blockIdx.x, threadIdx.x), total);
    }
}
