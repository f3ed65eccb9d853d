// Stage 2: most atomic additions move into shared memory. A block works for one group and collects
// that group's sums there, so only ten global atomics are left for each block. Shared memory is
// close, but the threads of a block still queue for the same ten addresses, once for every element.

#include "element.cuh"

extern "C" __global__ void backward(const TYPE *g, const TYPE *x, const float *a, const float *b,
                                    TYPE *dx, float *da, float *db,
                                    long long rows, long long groups, long long span) {
    const long long group = blockIdx.x, stride = (long long)gridDim.y * blockDim.x;
    __shared__ float sums[COEFFICIENTS];
    if (threadIdx.x < COEFFICIENTS) sums[threadIdx.x] = 0;
    // no thread may add before the zeros are there
    __syncthreads();
    const long long first = (long long)blockIdx.y * blockDim.x + threadIdx.x;
    for (long long number = first; number < rows * span; number += stride) {
        const long long i = place(number, groups, span);
        float terms[COEFFICIENTS];
        const float *A = a + group * (M + 1), *B = b + group * N;
        dx[i] = TYPE(gradients(float(g[i]), float(x[i]), A, B, terms));
        for (int k = 0; k < COEFFICIENTS; k++) atomicAdd(&sums[k], terms[k]);
    }
    // no thread may read before all have added
    __syncthreads();
    if (threadIdx.x < COEFFICIENTS)
        atomicAdd(destination(da, db, group, threadIdx.x), sums[threadIdx.x]);
}
