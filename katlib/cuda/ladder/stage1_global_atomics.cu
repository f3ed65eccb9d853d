// Stage 1: every element adds its ten terms to the group's ten sums in global memory, by atomic
// additions. All threads queue for the same few addresses. They arrive in a different order each
// time, so no two runs give the same bits. This is how the first KAT kernels did it.

#include "element.cuh"

extern "C" __global__ void forward(const TYPE *x, const float *a, const float *b, TYPE *y,
                                   int rows, int groups, int span) {
    float numerator[M + 1], denominator[N];
    load(a, b, numerator, denominator);
    for (Walk walk(rows, groups, span); walk.unfinished(); walk.advance())
        y[walk.offset] = TYPE(rational(float(x[walk.offset]), numerator, denominator));
}

extern "C" __global__ void backward(const TYPE *g, const TYPE *x, const float *a, const float *b,
                                    TYPE *dx, float *da, float *db,
                                    int rows, int groups, int span) {
    float numerator[M + 1], denominator[N], terms[COEFFICIENTS];
    load(a, b, numerator, denominator);
    for (Walk walk(rows, groups, span); walk.unfinished(); walk.advance()) {
        const int i = walk.offset;
        dx[i] = TYPE(gradients(float(g[i]), float(x[i]), numerator, denominator, terms));
        for (int k = 0; k < COEFFICIENTS; k++)
            atomicAdd(destination(da, db, blockIdx.x, k), terms[k]);
    }
}
