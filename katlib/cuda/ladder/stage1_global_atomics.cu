// Stage 1: one thread for each element. Forward and backward are one kernel each, so x is read once
// and no power of it is ever stored.
//
// Every element adds its ten terms to the same few numbers in global memory, by atomic additions.
// All threads queue for those addresses. They arrive in a different order each time, so no two runs
// give the same bits. This is how the first KAT kernels did it.

#include "element.cuh"

extern "C" __global__ void forward(const TYPE *x, const float *a, const float *b, TYPE *y,
                                   long long rows, long long groups, long long span) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * groups * span) return;
    const long long group = i / span % groups;
    y[i] = TYPE(rational(float(x[i]), a + group * (M + 1), b + group * N));
}

extern "C" __global__ void backward(const TYPE *g, const TYPE *x, const float *a, const float *b,
                                    TYPE *dx, float *da, float *db,
                                    long long rows, long long groups, long long span) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * groups * span) return;
    const long long group = i / span % groups;
    float terms[COEFFICIENTS];
    dx[i] = TYPE(gradients(float(g[i]), float(x[i]), a + group * (M + 1), b + group * N, terms));
    for (int k = 0; k < COEFFICIENTS; k++) atomicAdd(destination(da, db, group, k), terms[k]);
}
