// Stage 3: a thread keeps ten sums in registers while it strides over its elements. Nothing is
// shared inside the loop, so no thread waits. The coefficients are in registers too. At the end,
// ten global atomics are left for each thread: they come from many threads, all at the same time.

#include "element.cuh"

extern "C" __global__ void backward(const TYPE *g, const TYPE *x, const float *a, const float *b,
                                    TYPE *dx, float *da, float *db,
                                    long long rows, long long groups, long long span) {
    const long long group = blockIdx.x, stride = (long long)gridDim.y * blockDim.x;
    float numerator[M + 1], denominator[N + 1], sums[COEFFICIENTS] = {}, terms[COEFFICIENTS];
    for (int i = 0; i <= M; i++) numerator[i] = a[group * (M + 1) + i];
    for (int j = 0; j < N; j++) denominator[j] = b[group * N + j];
    const long long first = (long long)blockIdx.y * blockDim.x + threadIdx.x;
    for (long long number = first; number < rows * span; number += stride) {
        const long long i = place(number, groups, span);
        dx[i] = TYPE(gradients(float(g[i]), float(x[i]), numerator, denominator, terms));
        for (int k = 0; k < COEFFICIENTS; k++) sums[k] += terms[k];
    }
    for (int k = 0; k < COEFFICIENTS; k++) atomicAdd(destination(da, db, group, k), sums[k]);
}
