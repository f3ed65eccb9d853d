// Stage 3: a thread keeps ten sums in registers while it strides over its elements. Nothing is
// shared inside the loop, so no thread waits for another. At the end, ten global atomics are left
// for each thread: they come from many threads, all at the same time.

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
    for (int k = 0; k < COEFFICIENTS; k++) atomicAdd(destination(da, db, blockIdx.x, k), sums[k]);
}
