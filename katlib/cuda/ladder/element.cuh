// What all stages of the ladder share: the way of a thread through the elements of its group, and
// what it computes for one of them. Formulas and letters are those of ../rational.cu.
//
// x is (rows, groups, span): element (row, column) of a group lies at
// (row * groups + group) * span + column. A block works for one group, blockIdx.x. The gridDim.y
// blocks of a group share its elements.
#pragma once
#ifdef HEADER
#include HEADER
#endif

// a_0 .. a_M, then b_1 .. b_N
constexpr int COEFFICIENTS = M + 1 + N;

// A thread takes every S-th element of its group, where S is the number of the group's threads. It
// divides once, to find its first element; after that it only adds.
struct Walk {
    int offset, end, step, gap, span, column, column_step;

    __device__ Walk(int rows, int groups, int span) : span(span) {
        const int S = gridDim.y * blockDim.x, number = blockIdx.y * blockDim.x + threadIdx.x;
        const int row = groups * span;
        column = number % span;
        offset = number / span * row + blockIdx.x * span + column;
        end = rows * row;
        column_step = S % span;
        step = S / span * row + column_step;
        gap = row - span;
    }
    __device__ bool unfinished() const { return offset < end; }
    __device__ void advance() {
        offset += step;
        column += column_step;
        // past the end of the group's span: continue in the next row
        if (column >= span) column -= span, offset += gap;
    }
};

// The coefficients of the block's group, for the thread's registers.
__device__ inline void load(const float *a, const float *b, float (&numerator)[M + 1],
                            float (&denominator)[N]) {
    for (int i = 0; i <= M; i++) numerator[i] = a[blockIdx.x * (M + 1) + i];
    for (int j = 0; j < N; j++) denominator[j] = b[blockIdx.x * N + j];
}

// F(x) = P / Q, by Horner's rule.
__device__ inline float rational(float x, const float (&a)[M + 1], const float (&b)[N]) {
    float P = a[M], Q = 0, z = fabs(x);
    for (int i = M - 1; i >= 0; i--) P = P * x + a[i];
    for (int j = N - 1; j >= 0; j--) Q = (Q + fabs(b[j])) * z;
    return __fdividef(P, 1 + Q);
}

// Returns dx, and in `terms` what this element adds to each coefficient's gradient.
__device__ inline float gradients(float g, float x, const float (&a)[M + 1], const float (&b)[N],
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
    const float r = __fdividef(1, Q), F = P * r;
    float term = g * r, v = -term * F;
    const float dx = term * (dP - (x < 0 ? -F : F) * dQ);
    for (int i = 0; i <= M; i++, term *= x) terms[i] = term;
    for (int j = 0; j < N; j++) {
        v *= z;
        terms[M + 1 + j] = b[j] < 0 ? -v : v;
    }
    return dx;
}

// Where the sum of coefficient k of a group belongs.
__device__ inline float *destination(float *da, float *db, int group, int k) {
    return k <= M ? da + group * (M + 1) + k : db + group * N + k - M - 1;
}
