// What every stage of the ladder does for one element; the stages differ only in how they sum.
// Formulas and letters are those of ../rational.cu.
//
// x is (rows, groups, span): element (row, column) of a group lies at
// (row * groups + group) * span + column.
#pragma once
#ifdef HEADER
#include HEADER
#endif

// a_0 .. a_M, then b_1 .. b_N
constexpr int COEFFICIENTS = M + 1 + N;

// F(x) = P / Q, by Horner's rule.
__device__ inline float rational(float x, const float *a, const float *b) {
    float P = a[M], Q = 0, z = fabs(x);
    for (int i = M - 1; i >= 0; i--) P = P * x + a[i];
    for (int j = N - 1; j >= 0; j--) Q = (Q + fabs(b[j])) * z;
    return P / (1 + Q);
}

// Returns dx, and in `terms` what this element adds to each coefficient's gradient.
__device__ inline float gradients(float g, float x, const float *a, const float *b,
                                  float (&terms)[COEFFICIENTS]) {
    float P = a[M], dP = 0, Q = 0, dQ = 0, z = fabs(x);
    for (int i = M - 1; i >= 0; i--) {
        dP = dP * x + P;
        P = P * x + a[i];
    }
    for (int j = N; j >= 0; j--) {
        dQ = dQ * z + Q;
        Q = Q * z + (j ? fabs(b[j - 1]) : 1);
    }
    const float F = P / Q;
    float term = g / Q, v = -term * F;
    const float dx = term * (dP - (x < 0 ? -F : F) * dQ);
    for (int i = 0; i <= M; i++, term *= x) terms[i] = term;
    for (int j = 0; j < N; j++) {
        v *= z;
        terms[M + 1 + j] = b[j] < 0 ? -v : v;
    }
    return dx;
}

// Where the sum of coefficient k of a group belongs.
__device__ inline float *destination(float *da, float *db, long long group, int k) {
    return k <= M ? da + group * (M + 1) + k : db + group * N + k - M - 1;
}

// Where element `number` of the group of blockIdx.x lies in memory.
__device__ inline long long place(long long number, long long groups, long long span) {
    return (number / span * groups + blockIdx.x) * span + number % span;
}
