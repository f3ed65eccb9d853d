// Stage 2: the atomic additions move into shared memory. A block collects its ten sums there, so
// only ten global atomics are left for each block. Shared memory is close, but the threads of a
// block still queue for the same ten addresses, once for every element.

#include "element.cuh"

extern "C" __global__ void backward(const TYPE *g, const TYPE *x, const float *a, const float *b,
                                    TYPE *dx, float *da, float *db,
                                    int rows, int groups, int span) {
    float numerator[M + 1], denominator[N], terms[COEFFICIENTS];
    load(a, b, numerator, denominator);
    __shared__ float sums[COEFFICIENTS];
    if (threadIdx.x < COEFFICIENTS) sums[threadIdx.x] = 0;
    // no thread may add before the zeros are there
    __syncthreads();
    for (Walk walk(rows, groups, span); walk.unfinished(); walk.advance()) {
        const int i = walk.offset;
        dx[i] = TYPE(gradients(float(g[i]), float(x[i]), numerator, denominator, terms));
        for (int k = 0; k < COEFFICIENTS; k++) atomicAdd(&sums[k], terms[k]);
    }
    // no thread may read before all have added
    __syncthreads();
    if (threadIdx.x < COEFFICIENTS)
        atomicAdd(destination(da, db, blockIdx.x, threadIdx.x), sums[threadIdx.x]);
}
