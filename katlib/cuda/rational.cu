// The group-rational function of katlib/rational.py and its gradients, for NVIDIA GPUs.
//
//     F(x) = P(x) / Q(x),   P(x) = a_0 + a_1 x + ... + a_M x^M,   Q(x) = 1 + |b_1| |x| + ... + |b_N| |x|^N
//     dx   = g (P' - F Q') / Q          da_i = sum g x^i / Q          db_j = -sign(b_j) sum g F |x|^j / Q          sign(0) = +1
//
// (arXiv 2409.10594, equations 11 to 13; what is summed, and the trouble with summing it by atomics, is the subject of arXiv 2505.13813.)
//
// x is (rows, groups, span) and is read as packs of WIDTH neighbours, 16 bytes where that fits, so a row of a group has `packs` of them.
// A thread stays in one group, with that group's coefficients and its own share of their gradients in registers. The gradients are
// summed thread by thread, then block by block, and a second kernel adds the blocks' results: always in the same order.
//
// The loader compiles this file once for each
//     TYPE    of x:  __half, __nv_bfloat16, float or double          M, N    the two degrees
//     WIDTH   of a pack                                              INDEX   int, or long long for tensors too large for it
// as well as THREADS (the largest block) and, for half types, HEADER. tests/emulator compiles it for the CPU.

#ifdef HEADER
#include HEADER
#endif

struct alignas(WIDTH * sizeof(TYPE)) Pack { TYPE element[WIDTH]; };

template <typename T> struct Compute { using type = float; };           // half types are computed in float
template <> struct Compute<double> { using type = double; };
using Real = Compute<TYPE>::type;
using Index = INDEX;

constexpr int WARP = 32, COEFFICIENTS = M + 1 + N;
constexpr unsigned ALL_LANES = 0xffffffff;
// The blocks that a multiprocessor must hold at once, which limits a thread's registers (64 for four): as many as go without spills.
constexpr int BLOCKS = sizeof(Real) == 8 || COEFFICIENTS > 14 ? 1 : sizeof(Index) == 8 || COEFFICIENTS > 10 || M > 5 ? 3 : 4;
constexpr int FLUSH = WIDTH > 4 ? 8 : 32 / WIDTH;       // packs after which a thread's sums are put aside: long chains of additions lose digits

// In float, x^8 overflows beyond 65,504 = the largest half. So at degrees above 6 P and Q are computed SCALE times smaller, which their ratio does
// not show: with this power of two (exact, and free) they overflow beyond 2,000,000. It is not for free in the sums, whose terms g x^i / Q get
// that much larger; at degrees up to 6, where a million to the sixth fits as it is, there is none.
constexpr Real SCALE = sizeof(Real) == 8 || (M <= 6 && N <= 6) ? 1 : 1 / Real(1ll << 40);

// Q >= 1, so the approximate reciprocal (1 unit in the last place) is safe; double is divided exactly.
__device__ inline float reciprocal(float Q) { return __fdividef(1, Q); }
__device__ inline double reciprocal(double Q) { return 1 / Q; }

// c_0 + c_1 t + ... + c_K t^K and its derivative, by Horner's rule: the chain of the derivative runs one step behind.
template <int K> __device__ inline Real polynomial(const Real (&c)[K + 1], Real t, Real &slope) {
    Real value = c[K];
    slope = 0;
#pragma unroll
    for (int i = K - 1; i >= 0; i--) {
        slope = i == K - 1 ? value : slope * t + value;
        value = value * t + c[i];
    }
    return value;
}

// The way of one thread through its group. The threads of a group are numbered from 0 to S - 1 over all of its blocks and take packs
// number, number + S, number + 2 S, ... of the group's rows * packs. Where a row is short a block covers `group_tile` whole groups,
// and as many rows as it has threads for, so that its loads are contiguous; there S is a multiple of `packs` and `column` stays.
// Where it is long, group_tile is 1 and lanes is the whole block.
struct Walk {
    Index offset, end, step, gap, packs, column, column_step, group;

    __device__ Walk(Index rows, Index groups, Index packs, int group_tile, int lanes) : packs(packs) {
        const int slots = blockDim.x / (group_tile * lanes), slot = threadIdx.x / (group_tile * lanes);
        group = blockIdx.x * Index(group_tile) + threadIdx.x / lanes % group_tile;
        const Index number = (blockIdx.y * Index(slots) + slot) * lanes + threadIdx.x % lanes, S = Index(gridDim.y) * slots * lanes;
        const Index row = groups * packs;
        column = number % packs;
        offset = number / packs * row + group * packs + column;
        column_step = S % packs;
        step = S / packs * row + column_step;
        gap = row - packs;
        end = slot < slots && group < groups ? rows * row : 0;          // nothing to do for threads beyond the last slot or group
        if (group >= groups) group = groups - 1;                        // but they may read coefficients
    }
    __device__ bool inside() const { return offset < end; }
    __device__ void advance() {
        offset += step;
        column += column_step;
        if (column >= packs) column -= packs, offset += gap;            // on to the next row
    }
};

// `a_share` neighbouring groups share one row of a, `b_share` one of b.
__device__ inline void load(const Real *a, const Real *b, size_t a_row, size_t b_row, Real (&numerator)[M + 1], Real (&denominator)[N + 1]) {
    for (int i = 0; i <= M; i++) numerator[i] = a[a_row * (M + 1) + i] * SCALE;
    denominator[0] = SCALE;
    for (int j = 1; j <= N; j++) denominator[j] = fabs(b[b_row * N + j - 1]) * SCALE;
}

extern "C" __global__ void __launch_bounds__(THREADS) rational_forward(
        const Pack *__restrict__ x, const Real *__restrict__ a, const Real *__restrict__ b, Pack *__restrict__ y,
        Index rows, Index groups, Index packs, int a_share, int b_share, int group_tile, int lanes) {
    Walk walk(rows, groups, packs, group_tile, lanes);
    Real numerator[M + 1], denominator[N + 1], slope;
    load(a, b, walk.group / a_share, walk.group / b_share, numerator, denominator);
#pragma unroll 1
    for (; walk.inside(); walk.advance()) {
        const Pack in = x[walk.offset];
        Pack out;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            const Real t = Real(in.element[k]), P = polynomial<M>(numerator, t, slope);
            out.element[k] = TYPE(P * reciprocal(polynomial<N>(denominator, fabs(t), slope)));
        }
        y[walk.offset] = out;
    }
}

// Writes dx, and one partial sum for each coefficient and block: partial (groups, COEFFICIENTS, gridDim.y).
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) rational_backward(
        const Pack *__restrict__ g, const Pack *__restrict__ x, const Real *__restrict__ a, const Real *__restrict__ b,
        Pack *__restrict__ dx, Real *__restrict__ partial,
        Index rows, Index groups, Index packs, int a_share, int b_share, int group_tile, int lanes) {
    __shared__ Real sums[COEFFICIENTS][THREADS];
    Walk walk(rows, groups, packs, group_tile, lanes);
    Real numerator[M + 1], denominator[N + 1];
    load(a, b, walk.group / a_share, walk.group / b_share, numerator, denominator);
    for (int k = 0; k < COEFFICIENTS; k++) sums[k][threadIdx.x] = 0;

    while (walk.inside()) {
        Real sum[COEFFICIENTS] = {};
#pragma unroll 1
        for (int count = 0; count < FLUSH && walk.inside(); count++, walk.advance()) {
            const Pack in = x[walk.offset], gradient = g[walk.offset];
            Pack out;
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                const Real t = Real(in.element[k]), z = fabs(t);
                Real dP, dQ;
                const Real P = polynomial<M>(numerator, t, dP), r = reciprocal(polynomial<N>(denominator, z, dQ));
                const Real F = P * r;
                Real term = Real(gradient.element[k]) * r;              // g / Q
                out.element[k] = TYPE(term * (dP - (t < 0 ? -F : F) * dQ));
                Real v = term * F;
#pragma unroll
                for (int i = 0; i <= M; i++) {                          // term runs through g x^i / Q
                    if (i) term *= t;
                    sum[i] += term;
                }
#pragma unroll
                for (int j = 1; j <= N; j++) {                          // v runs through g F |x|^j / Q
                    v *= z;
                    sum[M + j] += v;
                }
            }
            dx[walk.offset] = out;
        }
#pragma unroll
        for (int k = 0; k < COEFFICIENTS; k++) sums[k][threadIdx.x] += sum[k];
    }
    __syncthreads();

    // A team of threads adds up one coefficient of one group: each strides over the group's threads, then they fold in halves. With few
    // groups to a block a team is a whole warp; with many it is smaller, so that one round is enough and nobody waits for another team.
    const int items = group_tile * COEFFICIENTS, threads = blockDim.x, slots = threads / (group_tile * lanes);
    int team = WARP;
    while (team > 1 && items * team > threads) team /= 2;
    const int rank = threadIdx.x % team;
    for (int first = 0; first < items; first += threads / team) {
        const int item = first + threadIdx.x / team, local = item % group_tile, k = item / group_tile;
        const Index group = blockIdx.x * Index(group_tile) + local;
        const bool valid = item < items && group < groups;
        Real total = 0;
        for (int slot = 0; valid && slot < slots; slot++) {
            for (int lane = rank; lane < lanes; lane += team) total += sums[k][(slot * group_tile + local) * lanes + lane];
        }
        for (int half = team / 2; half; half /= 2) total += __shfl_down_sync(ALL_LANES, total, half);
        if (valid && rank == 0) partial[(size_t(group) * COEFFICIENTS + k) * gridDim.y + blockIdx.y] = total;
    }
}

// Adds up the blocks' partial sums in double, one block for each coefficient: da (groups / a_share, M + 1), then db (groups / b_share, N).
extern "C" __global__ void __launch_bounds__(THREADS) rational_finish(
        const Real *__restrict__ partial, const Real *__restrict__ b, Real *__restrict__ da, Real *__restrict__ db,
        int a_share, int b_share, int a_size, int parts) {
    __shared__ double warps[THREADS / WARP];
    const bool above = int(blockIdx.x) < a_size;
    const int index = above ? blockIdx.x : blockIdx.x - a_size, degree = above ? M + 1 : N, share = above ? a_share : b_share;
    const int row = index / degree, k = index % degree + (above ? 0 : M + 1);
    double total = 0;
    for (int i = threadIdx.x; i < share * parts; i += blockDim.x) {     // the parts of one group after those of another
        total += partial[(size_t(row * share + i / parts) * COEFFICIENTS + k) * parts + i % parts];
    }
    for (int half = WARP / 2; half; half /= 2) total += __shfl_down_sync(ALL_LANES, total, half);
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = total;
    __syncthreads();
    if (threadIdx.x) return;
    for (unsigned warp = 1; warp < blockDim.x / WARP; warp++) total += warps[warp];
    total *= SCALE;
    if (above) da[index] = total;
    else db[index] = b[index] < 0 ? total : -total;
}
