// The group-rational function on a CPU, and its gradients:
//
//     F(x) = P(x) / Q(x)
//     P(x) = a_0 + a_1 x + ... + a_M x^M
//     Q(x) = 1 + |b_1| |x| + ... + |b_N| |x|^N
//
// x is (rows, G, span), a is (Ga, M + 1) and b is (Gb, N). Ga and Gb are divisors of G: if there
// are fewer rows of coefficients than groups, neighbouring groups share a row. The degrees M and N
// come from the compiler's -D options: `__init__.py` compiles this file at first use, once for each
// pair of degrees.
//
// Vectors. Neighbouring elements that fill a register are one vector. We use the vector extension
// of GCC and Clang, so the same source serves AVX-512, AVX2 and NEON.
//
// Strips. A row is cut into strips. A strip is usually one group. The exception are groups that are
// short and do not end where a vector ends (24 channels in vectors of 16, or one channel): there, a
// strip is one vector wide, and each lane holds the coefficients of its own group, so that no lane
// is idle. The coefficients of a strip, and the sums for their gradients, stay in registers for
// many rows.
//
// Items. The work is divided into items of about 32,000 elements, which the threads take in any
// order. Each item writes its sums to a place of its own, and these are added up in the order of
// the items. The result therefore has the same bits for any number of threads.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

// A vector has as many bytes as one register. With vectors of two registers the backward pass would
// run out of registers and keep some of its sums in memory.
#if defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>
#define INTRINSIC(name) _mm512_##name
constexpr int REGISTER = 64;
#elif defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#define INTRINSIC(name) _mm256_##name
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

constexpr int COEFFICIENTS = M + 1 + N;

// Sizes in elements: an item, and the tile of it that stays in the first-level cache.
constexpr int64_t ITEM = 32768;
constexpr int64_t TILE = 2048;
// The most elements that an item takes from one row of a group.
constexpr int64_t CHUNK = 8192;
// The longest row, in elements, that several rows may be joined to.
constexpr int64_t WIDEST = 1024;
// In longer rows, groups of so many vectors or more are strips, although their ends waste lanes.
constexpr int64_t LONG = 4;
// How many vectors of elements a strip costs by itself: its coefficients and its sums.
constexpr int64_t STRIP_COST = 16;
// The fewest vectors of a strip in a tile and in an item, if there are enough rows. Beginning a
// strip and adding up its sums take time, which should be small beside the work in between.
constexpr int64_t IN_TILE = 16;
constexpr int64_t IN_ITEM = 64;

// ---- Types: how a vector of each is read and written. Half types are computed in float.

typedef float floats __attribute__((vector_size(REGISTER)));
typedef double doubles __attribute__((vector_size(REGISTER)));
typedef uint32_t words __attribute__((vector_size(REGISTER)));
typedef uint16_t halves __attribute__((vector_size(REGISTER / 2)));

struct Float {
    typedef float Stored;
    typedef float Computed;
    typedef floats Vector;
};

struct Double {
    typedef double Stored;
    typedef double Computed;
    typedef doubles Vector;
};

struct Bfloat16 {
    typedef uint16_t Stored;
    typedef float Computed;
    typedef floats Vector;
};

template <class T> using Stored = typename T::Stored;
template <class T> using Computed = typename T::Computed;
template <class T> using Vector = typename T::Vector;
template <class T> constexpr int LANES = sizeof(Vector<T>) / sizeof(Computed<T>);

#ifdef INTRINSIC

// With intrinsics, because GCC 12 makes five instructions of these conversions, or converts lane by
// lane. Intel's type for "any integers" is a vector of long long.
typedef long long Integers __attribute__((vector_size(REGISTER / 2)));

struct Float16 {
    typedef uint16_t Stored;
    typedef float Computed;
    typedef floats Vector;
};

static inline floats widen(halves bits, Float16) {
    return (floats)INTRINSIC(cvtph_ps)((Integers)bits);
}
static inline halves narrow(floats value, Float16) {
    return (halves)INTRINSIC(cvtps_ph)(value, _MM_FROUND_TO_NEAREST_INT);
}
static inline words extend(halves bits) {
    return (words)INTRINSIC(cvtepu16_epi32)((Integers)bits);
}

#else

static inline words extend(halves bits) { return __builtin_convertvector(bits, words); }

#ifdef __FLT16_MAX__

struct Float16 {
    typedef _Float16 Stored;
    typedef float Computed;
    typedef floats Vector;
};

typedef _Float16 float16s __attribute__((vector_size(REGISTER / 2)));

static inline floats widen(float16s value, Float16) {
    return __builtin_convertvector(value, floats);
}
static inline float16s narrow(floats value, Float16) {
    return __builtin_convertvector(value, float16s);
}

#endif
#endif

static inline floats widen(halves bits, Bfloat16) { return (floats)(extend(bits) << 16); }

// Rounds to the nearest bfloat16, and ties to even. All NaNs become the same one.
static inline halves narrow(floats value, Bfloat16) {
    words bits = (words)value;
    words rounded = bits + 0x7fff + ((bits >> 16) & 1);
    words not_a_number = words{} + 0x7fc00000;
    words high = (value == value ? rounded : not_a_number) >> 16;
    return __builtin_convertvector(high, halves);
}

// Float and Double are stored as they are computed.
template <class V, class T> static inline V widen(V value, T) { return value; }
template <class V, class T> static inline V narrow(V value, T) { return value; }

// Reads n elements; the other lanes are 0, and zeros add nothing to any gradient. After a whole
// vector we prefetch the one that lies `ahead` of it, in the next tile.
template <class T>
static inline Vector<T> load(const Stored<T>* from, int64_t n, int64_t ahead) {
    decltype(narrow(Vector<T>{}, T())) stored{};
    if (n == LANES<T>) __builtin_prefetch(from + ahead);
    __builtin_memcpy(&stored, from, n * sizeof *from);
    return widen(stored, T());
}

// Writes n elements. The prefetch is for reading: prefetching for writing cost more than it saved.
template <class T>
static inline void store(Stored<T>* to, Vector<T> value, int64_t n, int64_t ahead) {
    auto stored = narrow(value, T());
    if (n == LANES<T>) __builtin_prefetch(to + ahead);
    __builtin_memcpy(to, &stored, n * sizeof *to);
}

// Signs are taken and set by bit operations, because a comparison would need three instructions.
// -V{} is -0.0 in every lane: the sign bit alone.
template <class V> static inline V magnitude(V x) {
    typedef decltype(x < x) Bits;
    return (V)((Bits)x & ~(Bits)-V{});
}

// `value` with its sign flipped where x < 0. Adding 0 turns -0 into 0, which counts as positive.
template <class V> static inline V with_sign_of(V x, V value) {
    typedef decltype(x < x) Bits;
    Bits sign = (Bits)(x + 0) & (Bits)-V{};
    return (V)((Bits)value ^ sign);
}

// ---- The plan: how the tensor is divided into items, tiles, strips and vectors

struct Range {
    int64_t begin;
    int64_t end;
};

struct Plan {
    // The sizes that the caller gave
    int64_t groups;
    int64_t span;
    int64_t Ga;
    int64_t Gb;
    int64_t size;

    // Rows, which may each be several rows of the caller's, and the strips of a row
    int64_t row;
    int64_t rows;
    int64_t strips;
    int64_t width;

    // An item is item_rows rows of one chunk of every strip
    int64_t chunk;
    int64_t chunks;
    int64_t tile_rows;
    int64_t item_rows;
    int64_t items;

    // How many elements ahead to prefetch
    int64_t ahead;

    Plan(int64_t rows, int64_t groups, int64_t span, int64_t Ga, int64_t Gb, int64_t lanes)
        : groups(groups), span(span), Ga(Ga), Gb(Gb), size(rows * groups * span), items(0) {
        if (!size) return;

        // Strips of one vector fill rows that are a whole number of vectors: we join several short
        // rows into one where they are not. Of a long row, the last strip may be narrower.
        int64_t joined = std::lcm(groups * span, lanes);
        bool join = joined <= WIDEST;
        bool by_lanes = span % lanes && (join || span < LONG * lanes);
        if (by_lanes) {
            // Whole vectors pay only where there are enough rows for the strips that they add.
            int64_t vectors = ((join ? joined : groups * span) + lanes - 1) / lanes;
            int64_t saved = size / span * ((span + lanes - 1) / lanes) - (size + lanes - 1) / lanes;
            by_lanes = saved > STRIP_COST * (vectors - groups);
        }
        row = by_lanes && join ? joined : groups * span;
        width = by_lanes ? lanes : span;
        strips = (row + width - 1) / width;
        this->rows = (size + row - 1) / row;

        chunk = std::min(width, CHUNK);
        chunks = (width + chunk - 1) / chunk;
        tile_rows = std::max<int64_t>({1, TILE / (strips * chunk), IN_TILE * lanes / chunk});
        item_rows = std::max({tile_rows, ITEM / (strips * chunk), IN_ITEM * lanes / chunk});
        items = (this->rows + item_rows - 1) / item_rows * chunks;
        ahead = tile_rows > 1 ? tile_rows * row : TILE / 4;
    }

    // The group to which a lane of a strip belongs
    int64_t group(int64_t strip, int lane) const {
        if (width == span) return strip;
        return int(strip * width + lane) / int(span) % int(groups);
    }

    int64_t first_row(int64_t item) const { return item / chunks * item_rows; }

    // Calls strip(s, rows, columns) for every strip s of every tile of an item.
    template <class Strip>
    ALWAYS_INLINE void for_each_strip(int64_t item, const Strip& strip) const {
        int64_t first = first_row(item);
        int64_t last = std::min(rows, first + item_rows);
        int64_t begin = item % chunks * chunk;
        int64_t end = std::min(width, begin + chunk);
        for (; first < last; first += tile_rows) {
            Range tile{first, std::min(last, first + tile_rows)};
            for (int64_t s = 0; s < strips; s++)
                strip(s, tile, Range{s * width + begin, std::min(row, s * width + end)});
        }
    }

    // Calls visit(at, n) for every vector: n elements from position `at`. All whole vectors are
    // visited in a single loop, so that what `visit` adds up stays in registers. The ends of the
    // rows, where they are not whole vectors, and the end of the tensor follow in a second loop.
    template <int lanes, class Visit>
    ALWAYS_INLINE void for_each_vector(Range rows, Range columns, const Visit& visit) const {
        const int64_t row = this->row;
        const int64_t size = this->size;
        const int64_t length = columns.end - columns.begin;
        const int64_t whole = length / lanes;
        const int64_t tail = length % lanes;

        // The last row may be cut off by the end of the tensor: the rows before this one are not.
        const int64_t complete =
            size < columns.end ? rows.begin : std::min(rows.end, (size - columns.end) / row + 1);

        int64_t at = rows.begin * row + columns.begin;
        int64_t left = whole;
        for (int64_t k = (complete - rows.begin) * whole; k > 0; k--) {
            visit(at, lanes);
            at += lanes;
            if (--left == 0) {
                at += row - whole * lanes;
                left = whole;
            }
        }
        for (int64_t r = tail ? rows.begin : complete; r < rows.end; r++) {
            at = r * row + columns.end - (tail ? tail : lanes);
            if (at < size) visit(at, tail ? tail : size - at);
        }
    }
};

// ---- Threads

// libgomp's GOMP_parallel: calls work(data) on each of `threads` threads and waits for them. The
// caller passes it, so that we run on the threads that torch already has.
typedef void (*Parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

// Calls item(i) for every i < items. Each thread begins with a share of neighbouring items. When it
// has finished them, it takes what the other threads have left of theirs.
template <class Item>
static void for_each_item(int64_t items, Parallel parallel, int threads, const Item& item) {
    struct Share {
        alignas(64) std::atomic<int64_t> next;
        int64_t end;
    };
    struct Job {
        const Item& item;
        int threads;
        std::atomic<int> started;
        std::vector<Share> shares;
    };
    threads = std::max<int64_t>(1, std::min<int64_t>(threads, items));
    Job job{item, threads, {0}, std::vector<Share>(threads)};
    for (int t = 0; t < threads; t++) {
        job.shares[t].next = items * t / threads;
        job.shares[t].end = items * (t + 1) / threads;
    }
    auto work = [](void* data) {
        Job& job = *static_cast<Job*>(data);
        int first = job.started++;
        for (int t = 0; t < job.threads; t++) {
            Share& share = job.shares[(first + t) % job.threads];
            for (int64_t i; (i = share.next.fetch_add(1)) < share.end;) job.item(i);
        }
    };
    if (threads == 1) {
        work(&job);
    } else if (parallel) {
        parallel(work, &job, threads, 0);
    } else {
        std::vector<std::thread> pool;
        for (int t = 1; t < threads; t++) pool.emplace_back(+work, &job);
        work(&job);
        for (auto& thread : pool) thread.join();
    }
}

// ---- The function

// The coefficients of every strip, lane by lane: a_0 ... a_M, |b_1| ... |b_N|
template <class T>
static std::vector<Vector<T>> coefficients(const Computed<T>* a, const Computed<T>* b,
                                           const Plan& plan) {
    std::vector<Vector<T>> table(plan.items ? plan.strips * COEFFICIENTS : 0);
    for (size_t i = 0; i < table.size(); i += COEFFICIENTS) {
        for (int lane = 0; lane < LANES<T>; lane++) {
            int64_t group = plan.group(i / COEFFICIENTS, lane);
            const Computed<T>* A = a + group * plan.Ga / plan.groups * (M + 1);
            const Computed<T>* B = b + group * plan.Gb / plan.groups * N;
            for (int k = 0; k <= M; k++) table[i + k][lane] = A[k];
            for (int j = 0; j < N; j++) table[i + M + 1 + j][lane] = std::max(B[j], -B[j]);
        }
    }
    return table;
}

// A float ends at 2^128. Up to degree 5 that is far away: for |x| = 10^6 and a coefficient of 100,
// the polynomials are 2^107. From degree 6 on, an |x| above LIMIT is huge. Where a strip has huge
// elements, a second pass computes them one by one, in double, where every power fits.
template <class T> constexpr bool MAY_OVERFLOW = sizeof(Computed<T>) == 4 && (M > 5 || N > 5);
constexpr float LIMIT = 256;

// One integer for each lane: all bits set, or none
template <class V> using Mask = decltype(V{} < V{});

template <class V> static ALWAYS_INLINE Mask<V> huge_lanes(V x) {
    return magnitude(x) > V{} + LIMIT;
}

template <class V> static ALWAYS_INLINE V zero_where(Mask<V> mask, V x) {
    return (V)((Mask<V>)x & ~mask);
}

template <class Lanes> static bool any(Lanes mask) {
    bool found = false;
    for (size_t lane = 0; lane < sizeof(mask) / sizeof(mask[0]); lane++) found |= mask[lane] != 0;
    return found;
}

// F(x), P'(x), the slope of Q in |x|, and 1 / Q(x), with one lane of a strip of `coefficients`
struct Exact {
    double F, dP, dQ, inverse;

    template <class V> Exact(double x, const V* table, int lane) {
        const double z = x < 0 ? -x : x;
        double P = table[M][lane];
        double Q = N ? table[M + N][lane] : 1;
        dP = dQ = 0;
        for (int i = M - 1; i >= 0; i--) {
            dP = dP * x + P;
            P = P * x + table[i][lane];
        }
        for (int j = N - 1; j >= 0; j--) {
            dQ = dQ * z + Q;
            Q = Q * z + (j ? table[M + j][lane] : 1);
        }
        inverse = 1 / Q;
        F = P * inverse;
    }
};

// The second pass: calls element(at, n, lane) for every huge element of a strip. It lies in the
// vector of n elements from position `at`.
template <class T, class Element>
static void for_each_huge(const Stored<T>* x, const Plan& plan, Range rows, Range columns,
                          const Element& element) {
    plan.for_each_vector<LANES<T>>(rows, columns, [&](int64_t at, int64_t n) {
        const Mask<Vector<T>> huge = huge_lanes(load<T>(x + at, n, 0));
        for (int lane = 0; lane < n; lane++)
            if (huge[lane]) element(at, n, lane);
    });
}

// Writes one lane of the vector of n elements at `to`.
template <class T>
static void store_lane(Stored<T>* to, int64_t n, int lane, Computed<T> value) {
    Vector<T> vector = load<T>(to, n, 0);
    vector[lane] = value;
    store<T>(to, vector, n, 0);
}

template <class T>
static __attribute__((noinline)) void forward_huge(const Stored<T>* x, Stored<T>* y,
                                                   const Vector<T>* table, const Plan& plan,
                                                   Range rows, Range columns) {
    for_each_huge<T>(x, plan, rows, columns, [=](int64_t at, int64_t n, int lane) {
        const double t = load<T>(x + at, n, 0)[lane];
        store_lane<T>(y + at, n, lane, Exact(t, table, lane).F);
    });
}

template <class T, class V = Vector<T>>
static void forward(const Stored<T>* x, const Computed<T>* a, const Computed<T>* b, Stored<T>* y,
                    const Plan& plan, Parallel parallel, int threads) {
    const auto table = coefficients<T>(a, b, plan);
    for_each_item(plan.items, parallel, threads, [&, x, y](int64_t item) {
        auto strip = [&, x = x, y = y, ahead = plan.ahead](int64_t s, Range rows, Range columns) {
            V A[M + 1];
            V B[N + 1] = {V{} + 1};
            Mask<V> huge{};
            for (int k = 0; k < COEFFICIENTS; k++)
                (k <= M ? A[k] : B[k - M]) = table[s * COEFFICIENTS + k];

            // Horner's rule for P and Q
            auto visit = [&, x = x, y = y, ahead = ahead](int64_t at, int64_t n) {
                V X = load<T>(x + at, n, ahead);
                V Z = magnitude(X);
                V P = A[M];
                V Q = B[N];
                for (int i = M - 1; i >= 0; i--) P = P * X + A[i];
                for (int j = N - 1; j >= 0; j--) Q = Q * Z + B[j];
                store<T>(y + at, P / Q, n, ahead);
                if constexpr (MAY_OVERFLOW<T>) huge |= huge_lanes(X);
            };
            plan.for_each_vector<LANES<T>>(rows, columns, visit);
            if (MAY_OVERFLOW<T> && any(huge))
                forward_huge<T>(x, y, &table[s * COEFFICIENTS], plan, rows, columns);
        };
        plan.for_each_strip(item, strip);
    });
}

// ---- Its gradients

// For one vector: returns dx if INPUT, and adds to `sum` if SUMS. A holds a_0 ... a_M, and B holds
// 1, |b_1| ... |b_N|.
template <bool INPUT, bool SUMS, class V>
static ALWAYS_INLINE V gradients(V x, V g, const V* A, const V* B, V* sum) {
    V z = magnitude(x);

    // Horner's rule for P and Q, and one step behind it for their derivatives
    V P = A[M];
    V Q = B[N];
    V dP = V{};
    V dQ = V{};
    for (int i = M - 1; i >= 0; i--) {
        if constexpr (INPUT) dP = i == M - 1 ? P : dP * x + P;
        P = P * x + A[i];
    }
    for (int j = N - 1; j >= 0; j--) {
        if constexpr (INPUT) dQ = j == N - 1 ? Q : dQ * z + Q;
        Q = Q * z + B[j];
    }

    // dx = g F'(x) = g / Q (P' - F Q'), with t = g / Q
    V inverse = 1 / Q;
    V F = P * inverse;
    V t = g * inverse;
    V v = t * F;
    V dx = V{};
    if constexpr (INPUT) dx = t * (dP - F * with_sign_of(x, dQ));

    // g x^i / Q for each a_i, and g F |x|^j / Q for each b_j
    if constexpr (SUMS) {
        sum[0] += t;
        for (int i = 1; i <= M; i++) {
            t *= x;
            sum[i] += t;
        }
        for (int j = 1; j <= N; j++) {
            v *= z;
            sum[M + j] += v;
        }
    }
    return dx;
}

template <class T, bool INPUT, bool SUMS>
static __attribute__((noinline)) void backward_huge(const Stored<T>* g, const Stored<T>* x,
                                                    Stored<T>* dx, Vector<T>* sums,
                                                    const Vector<T>* table, const Plan& plan,
                                                    Range rows, Range columns) {
    for_each_huge<T>(x, plan, rows, columns, [=](int64_t at, int64_t n, int lane) {
        const double t = load<T>(x + at, n, 0)[lane];
        const Exact exact(t, table, lane);
        double a_term = load<T>(g + at, n, 0)[lane] * exact.inverse;
        double b_term = a_term * exact.F;
        if constexpr (INPUT) {
            const double slope = exact.dP - (t < 0 ? -exact.F : exact.F) * exact.dQ;
            store_lane<T>(dx + at, n, lane, a_term * slope);
        }
        if constexpr (SUMS) {
            for (int i = 0; i <= M; i++, a_term *= t) sums[i][lane] += a_term;
            for (int j = 1; j <= N; j++) sums[M + j][lane] += b_term *= t < 0 ? -t : t;
        }
    });
}

// Adds up the sums of all items, in their order and in double, and writes
//
//     da_i = sum g x^i / Q,     db_j = -sign(b_j) sum g F |x|^j / Q
//
// where `sums` holds the two sums of each item, strip and lane, without the factor -sign(b_j).
template <class T>
static void write_coefficient_gradients(const Computed<T>* sums, const Computed<T>* b,
                                        Computed<T>* da, Computed<T>* db, const Plan& plan) {
    const size_t length = plan.items ? plan.strips * COEFFICIENTS * LANES<T> : 0;
    std::vector<double> totals(length);
    for (int64_t item = 0; item < plan.items; item++)
        for (size_t i = 0; i < length; i++) totals[i] += sums[item * length + i];

    std::vector<double> A(plan.Ga * (M + 1));
    std::vector<double> B(plan.Gb * N + 1);
    for (size_t i = 0; i < length; i += COEFFICIENTS * LANES<T>) {
        for (int lane = 0; lane < LANES<T>; lane++) {
            int64_t group = plan.group(i / (COEFFICIENTS * LANES<T>), lane);
            double* to_a = &A[group * plan.Ga / plan.groups * (M + 1)];
            double* to_b = &B[group * plan.Gb / plan.groups * N];
            const double* from = &totals[i + lane];
            for (int k = 0; k <= M; k++) to_a[k] += from[k * LANES<T>];
            for (int j = 0; j < N; j++) to_b[j] += from[(M + 1 + j) * LANES<T>];
        }
    }

    // sign(0) = +1, so that a denominator of zeros still learns
    for (int64_t i = 0; i < plan.Ga * (M + 1); i++) da[i] = A[i];
    for (int64_t i = 0; i < plan.Gb * N; i++) db[i] = b[i] < 0 ? B[i] : -B[i];
}

// Writes dx only if INPUT, and da and db only if SUMS.
template <class T, bool INPUT, bool SUMS, class V = Vector<T>>
static void backward(const Stored<T>* g, const Stored<T>* x, const Computed<T>* a,
                     const Computed<T>* b, Stored<T>* dx, Computed<T>* da, Computed<T>* db,
                     const Plan& plan, Parallel parallel, int threads) {
    const auto table = coefficients<T>(a, b, plan);

    // A place for the sums of every item and strip, lane by lane. The first tile of an item begins
    // them: to fill so many with zeros beforehand would take time.
    std::unique_ptr<V[]> sums;
    if constexpr (SUMS) sums.reset(new V[plan.items * table.size()]);

    for_each_item(plan.items, parallel, threads, [&, g, x, dx](int64_t item) {
        auto strip = [&, g = g, x = x, dx = dx, ahead = plan.ahead](int64_t s, Range rows,
                                                                     Range columns) {
            V A[M + 1];
            V B[N + 1] = {V{} + 1};
            V sum[COEFFICIENTS];
            Mask<V> huge{};
            V* place = SUMS ? &sums[item * table.size() + s * COEFFICIENTS] : nullptr;
            bool first = rows.begin == plan.first_row(item);
            for (int k = 0; k < COEFFICIENTS; k++) {
                (k <= M ? A[k] : B[k - M]) = table[s * COEFFICIENTS + k];
                if constexpr (SUMS) sum[k] = first ? V{} : place[k];
            }

            auto visit = [&, g = g, x = x, dx = dx, ahead = ahead](int64_t at, int64_t n) {
                V X = load<T>(x + at, n, ahead);
                V G = load<T>(g + at, n, ahead);
                if constexpr (MAY_OVERFLOW<T>) {
                    // Zeros add nothing to the sums.
                    Mask<V> lanes = huge_lanes(X);
                    huge |= lanes;
                    X = zero_where(lanes, X);
                    G = zero_where(lanes, G);
                }
                V dX = gradients<INPUT, SUMS>(X, G, A, B, sum);
                if constexpr (INPUT) store<T>(dx + at, dX, n, ahead);
            };
            plan.for_each_vector<LANES<T>>(rows, columns, visit);
            if constexpr (SUMS)
                for (int k = 0; k < COEFFICIENTS; k++) place[k] = sum[k];
            if (MAY_OVERFLOW<T> && any(huge))
                backward_huge<T, INPUT, SUMS>(g, x, dx, place, &table[s * COEFFICIENTS], plan, rows,
                                              columns);
        };
        plan.for_each_strip(item, strip);
    });

    if constexpr (SUMS)
        write_coefficient_gradients<T>((const Computed<T>*)sums.get(), b, da, db, plan);
}

// ---- The functions that `__init__.py` calls

#define FORWARD(name, T)                                                                       \
    extern "C" void name(const void* x, const void* a, const void* b, void* y, int64_t rows,   \
                         int64_t groups, int64_t span, int64_t Ga, int64_t Gb,                 \
                         Parallel parallel, int threads) {                                     \
        forward<T>((const Stored<T>*)x, (const Computed<T>*)a, (const Computed<T>*)b,          \
                   (Stored<T>*)y, {rows, groups, span, Ga, Gb, LANES<T>}, parallel, threads);  \
    }

#define BACKWARD(name, T, INPUT, SUMS)                                                         \
    extern "C" void name(const void* g, const void* x, const void* a, const void* b, void* dx, \
                         void* da, void* db, int64_t rows, int64_t groups, int64_t span,       \
                         int64_t Ga, int64_t Gb, Parallel parallel, int threads) {             \
        backward<T, INPUT, SUMS>((const Stored<T>*)g, (const Stored<T>*)x,                     \
                                 (const Computed<T>*)a, (const Computed<T>*)b, (Stored<T>*)dx, \
                                 (Computed<T>*)da, (Computed<T>*)db,                           \
                                 {rows, groups, span, Ga, Gb, LANES<T>}, parallel, threads);   \
    }

#define EXPORT(name, T)                                       \
    FORWARD(forward_##name, T)                                \
    BACKWARD(backward_##name, T, true, true)                  \
    BACKWARD(input_gradient_##name, T, true, false)           \
    BACKWARD(coefficient_gradients_##name, T, false, true)

EXPORT(float32, Float)
EXPORT(float64, Double)
EXPORT(bfloat16, Bfloat16)
#if defined(INTRINSIC) || defined(__FLT16_MAX__)
EXPORT(float16, Float16)
#endif
