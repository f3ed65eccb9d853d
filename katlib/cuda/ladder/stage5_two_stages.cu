// Stage 5: no atomics. A block writes its ten sums where no other block writes, and a second kernel
// adds them up, always in the same order, so two runs give the same bits. The price is one more
// launch, and groups * 10 * blocks numbers that are written and read again.

#include "element.cuh"

extern "C" __global__ void backward(const TYPE *g, const TYPE *x, const float *a, const float *b,
                                    TYPE *dx, float *partial,
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
