// The group-rational function of katlib/rational.py and its gradients, for NVIDIA GPUs.
//
//     F(x) = P(x) / Q(x)
//     P(x) = a_0 + a_1 x + ... + a_M x^M
//     Q(x) = 1 + |b_1| |x| + ... + |b_N| |x|^N
//
//     dx   = g (P' - F Q') / Q
//     da_i = sum of g x^i / Q
//     db_j = -sign(b_j) sum of g F |x|^j / Q,   where sign(0) = +1
//
// The formulas are equations 11 to 13 of arXiv 2409.10594. The subject of arXiv 2505.13813 is what
// these sums cost when they are made by atomic additions; here they are made without any.
//
// x is (rows, groups, span). It is read in packs of WIDTH neighbouring elements, 16 bytes where
// possible, so one row of one group consists of `packs` packs. A thread stays within one group, and
// keeps that group's coefficients and its own partial sums of their gradients in registers. The
// threads' sums are added up within each block, and a second kernel adds up the blocks' sums. The
// order of all these additions is fixed, so two runs give the same bits.
//
// The loader compiles this file once for each combination of these macros:
//
//     TYPE      type of x: __half, __nv_bfloat16, float or double
//     HEADER    for the two half types, the CUDA header that defines them
//     M, N      degrees of numerator and denominator
//     WIDTH     elements in a pack
//     INDEX     type of offsets: int, or long long for tensors that are too large for int
//     THREADS   the largest block
//     INPUT_GRADIENT, COEFFICIENT_GRADIENTS
//               what rational_backward computes: true, which is the default, or false
//
// tests/emulator compiles the same file for the CPU.

#ifdef HEADER
#include HEADER
#endif
#ifndef INPUT_GRADIENT
#define INPUT_GRADIENT true
#endif
#ifndef COEFFICIENT_GRADIENTS
#define COEFFICIENT_GRADIENTS true
#endif

struct alignas(WIDTH * sizeof(TYPE)) Pack { TYPE element[WIDTH]; };

// The type of all arithmetic: float, also for the half types, or double.
template <typename T> struct Compute { using type = float; };
template <> struct Compute<double> { using type = double; };
using Real = Compute<TYPE>::type;
using Index = INDEX;

constexpr int WARP = 32, COEFFICIENTS = M + 1 + N;
constexpr unsigned ALL_LANES = 0xffffffff;

// How many blocks of rational_backward one multiprocessor must be able to hold at once. This limits
// the registers of a thread (4 blocks: 64 registers). The numbers are the largest without spills.
__device__ constexpr int resident_blocks() {
    if (sizeof(Real) == 8 || COEFFICIENTS > 14) return 1;
    if (sizeof(Index) == 8 || COEFFICIENTS > 10 || M > 5) return 3;
    return 4;
}

// A thread empties its sums into shared memory after so many packs, because a long chain of
// additions loses digits.
constexpr int FLUSH = WIDTH > 4 ? 8 : 32 / WIDTH;

// How many partial sums a thread of rational_finish loads at once.
constexpr int LOADS = 8;

// A float ends at 2^128, and the reciprocal below returns 0 above 2^126. Up to degree 5 that is far
// away: for |x| = 10^6 and a coefficient of 100, the polynomials are 2^107. From degree 6 on, an |x|
// above LIMIT is huge: such elements are computed apart, in double, where every power fits. For all
// others the powers, and their reciprocals times any gradient, fit a float.
constexpr bool MAY_OVERFLOW = sizeof(Real) == 4 && (M > 5 || N > 5);
constexpr float LIMIT = 256;
__device__ inline bool is_huge(Real x) { return MAY_OVERFLOW && fabs(x) > LIMIT; }

// In float the fast reciprocal, which is exact to 1 unit in the last place. It returns 0 for
// Q > 2^126, see LIMIT.
__device__ inline float reciprocal(float Q) { return __fdividef(1, Q); }
__device__ inline double reciprocal(double Q) { return 1 / Q; }

// `value`, with its sign changed where x is negative. One bit decides, and x + 0 has the sign of a
// positive number for both zeros.
__device__ inline float times_sign(float value, float x) {
    return __uint_as_float(__float_as_uint(value) ^ (__float_as_uint(x + 0) & 0x80000000));
}
__device__ inline double times_sign(double value, double x) { return x < 0 ? -value : value; }

// c_0 + c_1 t + ... + c_K t^K and its derivative by Horner's rule. The chain of the derivative runs
// one step behind the chain of the value.
template <int K>
__device__ inline Real polynomial(const Real (&c)[K + 1], Real t, Real &derivative) {
    Real value = c[K];
    derivative = 0;
#pragma unroll
    for (int i = K - 1; i >= 0; i--) {
        derivative = i == K - 1 ? value : derivative * t + value;
        value = value * t + c[i];
    }
    return value;
}

// The path of one thread through the packs of its group.
//
// The threads that work on a group, in all blocks, are numbered from 0 to S - 1. Thread `number`
// takes the packs number, number + S, number + 2 S, ... of the group's rows * packs.
//
// Where rows are short, a block covers `group_tile` whole groups side by side, and as many rows
// below each other (`slots`) as it has threads for, so its loads are contiguous. S is then a
// multiple of `packs`, so a thread never changes its column. Where rows are long, group_tile is 1
// and `lanes`, the number of neighbouring threads in a row of a group, is the whole block.
struct Walk {
    Index offset, end, step, gap, packs, column, column_step, group;

    __device__ Walk(Index rows, Index groups, Index packs, int group_tile, int lanes)
            : packs(packs) {
        const int slots = blockDim.x / (group_tile * lanes);
        const int slot = threadIdx.x / (group_tile * lanes);
        group = blockIdx.x * Index(group_tile) + threadIdx.x / lanes % group_tile;
        const Index number = (blockIdx.y * Index(slots) + slot) * lanes + threadIdx.x % lanes;
        const Index S = Index(gridDim.y) * slots * lanes;
        const Index row = groups * packs;
        column = number % packs;
        offset = number / packs * row + group * packs + column;
        column_step = S % packs;
        step = S / packs * row + column_step;
        gap = row - packs;
        // Threads beyond the last slot or the last group have nothing to do. They still load
        // coefficients, so their group must exist.
        end = slot < slots && group < groups ? rows * row : 0;
        if (group >= groups) group = groups - 1;
    }
    __device__ bool unfinished() const { return offset < end; }
    __device__ void advance() {
        offset += step;
        column += column_step;
        // past the end of this row of the group: continue in the next row
        if (column >= packs) column -= packs, offset += gap;
    }
};

// Loads a row of a and a row of b, with Q's constant term 1 in denominator[0].
__device__ inline void load(
        const Real *a, const Real *b, Real (&numerator)[M + 1], Real (&denominator)[N + 1]) {
    for (int i = 0; i <= M; i++) numerator[i] = a[i];
    denominator[0] = 1;
    for (int j = 1; j <= N; j++) denominator[j] = fabs(b[j - 1]);
}

// F(x), P'(x), the slope of Q in |x|, and 1 / Q(x), in double, from a row of a and a row of b. It is
// for huge x alone, which are rare, so what counts is that it takes few registers: the coefficients
// are read where they are needed.
struct Exact {
    double F, dP, dQ, r;

    __device__ Exact(double x, const Real *a, const Real *b) {
        const double z = fabs(x);
        double P = a[M], Q = N ? fabs(b[N - 1]) : 1;
        dP = dQ = 0;
#pragma unroll 1
        for (int i = M - 1; i >= 0; i--) {
            dP = dP * x + P;
            P = P * x + a[i];
        }
#pragma unroll 1
        for (int j = N - 1; j >= 0; j--) {
            dQ = dQ * z + Q;
            Q = Q * z + (j ? fabs(b[j - 1]) : 1);
        }
        r = 1 / Q;
        F = P * r;
    }
};

// Writes F(x) for the huge elements of a pack.
__device__ inline void forward_huge(const Pack &x, const Real *a, const Real *b, Pack &y) {
#pragma unroll 1
    for (int k = 0; k < WIDTH; k++) {
        const Real t = Real(x.element[k]);
        if (is_huge(t)) y.element[k] = TYPE(Real(Exact(t, a, b).F));
    }
}

// y = F(x). `a_share` neighbouring groups share one row of a, `b_share` one row of b.
extern "C" __global__ void __launch_bounds__(THREADS) rational_forward(
        const Pack *__restrict__ x, const Real *__restrict__ a, const Real *__restrict__ b,
        Pack *__restrict__ y,
        Index rows, Index groups, Index packs, int a_share, int b_share,
        int group_tile, int lanes) {
    Walk walk(rows, groups, packs, group_tile, lanes);
    Real numerator[M + 1], denominator[N + 1], derivative;
    a += size_t(walk.group / a_share) * (M + 1);
    b += size_t(walk.group / b_share) * N;
    load(a, b, numerator, denominator);
#pragma unroll 1
    for (; walk.unfinished(); walk.advance()) {
        const Pack in = x[walk.offset];
        Pack out;
        bool any_huge = false;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            const Real t = Real(in.element[k]);
            any_huge |= is_huge(t);
            const Real P = polynomial<M>(numerator, t, derivative);
            const Real Q = polynomial<N>(denominator, fabs(t), derivative);
            out.element[k] = TYPE(P * reciprocal(Q));
        }
        y[walk.offset] = out;
        if (any_huge) forward_huge(x[walk.offset], a, b, y[walk.offset]);
    }
}

// Adds the terms of one element x to a thread's sums: g x^i / Q for a_i, g F |x|^j / Q for b_j. All
// are multiples of the same powers of |x|; `odd` is g / Q with the sign of x's odd powers.
__device__ inline void add_terms(
        Real g_over_Q, Real odd, Real F, Real x, Real (&sum)[COEFFICIENTS]) {
    const Real b_term = g_over_Q * F, z = fabs(x);
    Real power = 1;
    sum[0] += g_over_Q;
#pragma unroll
    for (int k = 1; k <= M || k <= N; k++) {
        power *= z;
        if (k <= M) sum[k] += (k % 2 ? odd : g_over_Q) * power;
        if (k <= N) sum[M + k] += b_term * power;
    }
}

// Writes dx for the huge elements of a pack, and adds their terms to a thread's sums in shared
// memory, which are THREADS apart.
__device__ inline void backward_huge(
        const Pack &g, const Pack &x, const Real *a, const Real *b, Pack *dx, Real *sums) {
#pragma unroll 1
    for (int k = 0; k < WIDTH; k++) {
        const double t = Real(x.element[k]);
        if (!is_huge(t)) continue;
        const Exact at(t, a, b);
        const double g_over_Q = Real(g.element[k]) * at.r;
        if constexpr (INPUT_GRADIENT)
            dx->element[k] = TYPE(Real(g_over_Q * (at.dP - (t < 0 ? -at.F : at.F) * at.dQ)));
        if constexpr (COEFFICIENT_GRADIENTS) {
            double a_term = g_over_Q, b_term = g_over_Q * at.F;
#pragma unroll 1
            for (int i = 0; i <= M; i++, a_term *= t) sums[i * THREADS] += Real(a_term);
#pragma unroll 1
            for (int j = 1; j <= N; j++) sums[(M + j) * THREADS] += Real(b_term *= fabs(t));
        }
    }
}

// Adds up the sums of a block's threads, and writes one partial sum for each of its groups and for
// each coefficient: partial (groups, COEFFICIENTS, gridDim.y).
//
// A team of threads adds up one coefficient of one group. Each member strides over the threads of
// that group, then the members' totals are folded in halves. Where a block has few groups, a team
// is a whole warp. Where it has many, teams are smaller, so that one round is enough for all.
__device__ inline void add_up_block(
        const Real (&sums)[COEFFICIENTS][THREADS], Real *__restrict__ partial,
        Index groups, int group_tile, int lanes) {
    const int items = group_tile * COEFFICIENTS, threads = blockDim.x;
    const int slots = threads / (group_tile * lanes);
    int team = WARP;
    while (team > 1 && items * team > threads) team /= 2;
    const int rank = threadIdx.x % team;
    for (int first = 0; first < items; first += threads / team) {
        const int item = first + threadIdx.x / team;
        const int local = item % group_tile, k = item / group_tile;
        const Index group = blockIdx.x * Index(group_tile) + local;
        const bool valid = item < items && group < groups;
        Real total = 0;
        for (int slot = 0; valid && slot < slots; slot++) {
            for (int lane = rank; lane < lanes; lane += team)
                total += sums[k][(slot * group_tile + local) * lanes + lane];
        }
        for (int half = team / 2; half; half /= 2)
            total += __shfl_down_sync(ALL_LANES, total, half);
        if (valid && rank == 0)
            partial[(size_t(group) * COEFFICIENTS + k) * gridDim.y + blockIdx.y] = total;
    }
}

// Writes dx, unless INPUT_GRADIENT is false, and the block's partial sums of da and db, unless
// COEFFICIENT_GRADIENTS is false.
extern "C" __global__ void __launch_bounds__(THREADS, resident_blocks()) rational_backward(
        const Pack *__restrict__ g, const Pack *__restrict__ x, const Real *__restrict__ a,
        const Real *__restrict__ b, Pack *__restrict__ dx, Real *__restrict__ partial,
        Index rows, Index groups, Index packs, int a_share, int b_share,
        int group_tile, int lanes) {
    __shared__ Real sums[COEFFICIENTS][THREADS];
    Walk walk(rows, groups, packs, group_tile, lanes);
    Real numerator[M + 1], denominator[N + 1];
    a += size_t(walk.group / a_share) * (M + 1);
    b += size_t(walk.group / b_share) * N;
    load(a, b, numerator, denominator);
    if constexpr (COEFFICIENT_GRADIENTS) {
        for (int k = 0; k < COEFFICIENTS; k++) sums[k][threadIdx.x] = 0;
    }

    while (walk.unfinished()) {
        Real sum[COEFFICIENTS] = {};
        bool any_huge = false;
        Index last = 0;
        // A pack with huge elements ends this loop too: they are computed when the registers of
        // the sums are free.
#pragma unroll 1
        for (int count = 0; count < FLUSH && !any_huge && walk.unfinished(); count++) {
            const Pack in = x[walk.offset], gradient = g[walk.offset];
            Pack out;
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                const Real t = Real(in.element[k]);
                any_huge |= is_huge(t);
                Real dP, dQ;
                const Real P = polynomial<M>(numerator, t, dP);
                const Real r = reciprocal(polynomial<N>(denominator, fabs(t), dQ));
                const Real F = P * r, g_over_Q = Real(gradient.element[k]) * r;
                const Real odd = times_sign(g_over_Q, t);
                if constexpr (INPUT_GRADIENT)
                    out.element[k] = TYPE(g_over_Q * dP - odd * (F * dQ));
                if constexpr (COEFFICIENT_GRADIENTS) {
                    if (!is_huge(t)) add_terms(g_over_Q, odd, F, t, sum);
                }
            }
            if constexpr (INPUT_GRADIENT) dx[walk.offset] = out;
            last = walk.offset;
            walk.advance();
        }
        if constexpr (COEFFICIENT_GRADIENTS) {
#pragma unroll
            for (int k = 0; k < COEFFICIENTS; k++) sums[k][threadIdx.x] += sum[k];
        }
        if (any_huge) backward_huge(g[last], x[last], a, b, dx + last, &sums[0][threadIdx.x]);
    }
    if constexpr (COEFFICIENT_GRADIENTS) {
        __syncthreads();
        add_up_block(sums, partial, groups, group_tile, lanes);
    }
}

// Adds up the blocks' partial sums in double, one block for each coefficient: first those of
// da (groups / a_share, M + 1), then those of db (groups / b_share, N).
extern "C" __global__ void __launch_bounds__(THREADS) rational_finish(
        const Real *__restrict__ partial, const Real *__restrict__ b, Real *__restrict__ da,
        Real *__restrict__ db, int a_share, int b_share, int a_size, int parts) {
    __shared__ double warps[THREADS / WARP];
    const bool is_numerator = int(blockIdx.x) < a_size;
    const int index = is_numerator ? blockIdx.x : blockIdx.x - a_size;
    const int row_length = is_numerator ? M + 1 : N, share = is_numerator ? a_share : b_share;
    const int row = index / row_length, k = index % row_length + (is_numerator ? 0 : M + 1);
    double total = 0;
    // All parts of one group, then all parts of the next group that shares this row. `part` is of
    // the group, and `i` counts through all of them.
    const int threads = blockDim.x, count = share * parts;
    const size_t next_group = size_t(COEFFICIENTS) * parts;
    const Real *from = partial + row * share * next_group + size_t(k) * parts;
    from += threadIdx.x / parts * next_group + threadIdx.x % parts;
    const size_t step = threads / parts * next_group + threads % parts;
    int part = threadIdx.x % parts;
    // Several are loaded before the first is added, or each addition would wait for a load of its
    // own. They are added in order, and the zeros after the last one change nothing.
    for (int i = threadIdx.x; i < count;) {
        Real loaded[LOADS];
#pragma unroll
        for (int l = 0; l < LOADS; l++, i += threads) {
            loaded[l] = i < count ? *from : 0;
            from += step;
            part += threads % parts;
            if (part >= parts) part -= parts, from += next_group - parts;
        }
#pragma unroll
        for (int l = 0; l < LOADS; l++) total += loaded[l];
    }
    for (int half = WARP / 2; half; half /= 2) total += __shfl_down_sync(ALL_LANES, total, half);
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = total;
    __syncthreads();
    if (threadIdx.x) return;
    for (unsigned warp = 1; warp < blockDim.x / WARP; warp++) total += warps[warp];
    if (is_numerator) da[index] = total;
    else db[index] = b[index] < 0 ? total : -total;
}
