// The group-rational function on a CPU: F(x) = P(x) / Q(x), P = a_0 + ... + a_M x^M, Q = 1 + |b_1||x| + ... + |b_N||x|^N,
// and its backward, for x (rows, G, span), a (Ga, M + 1), b (Gb, N), where Ga and Gb are divisors of G and neighbours share a row. The degrees M and N
// are given by the compiler's -D options: `__init__.py` compiles this file at first use, once for each pair of degrees.
//
// Neighbours that fill a register are one vector (GCC's and Clang's vector extension, so the same source serves AVX-512, AVX2 and NEON). A row is cut
// into strips. Where groups end where vectors do, or are long, a strip is a group. Where they are short and don't (24 channels in vectors of 16),
// a strip is one vector wide and each lane has the coefficients of its own group, so that no lane is idle. A strip's coefficients, and the sums for
// their gradients, stay in registers while many rows pass by.
//
// Threads take items of about 32,000 elements in any order, but each item's sums go to a place of their own and are added up in the order of the
// items: the result has the same bits whatever the threads did and however many there were.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BW__)           // a vector is one register: two for one would have to be spilled
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
constexpr int COEFFICIENTS = M + 1 + N;
constexpr int64_t ITEM = 32768, TILE = 2048;                // elements of an item; of the part of it that stays in the first-level cache
constexpr int64_t CHUNK = 8192, WIDEST = 1024;              // most elements of a group in a row of an item; of a row with strips of one vector
constexpr int64_t IN_TILE = 16, IN_ITEM = 64;               // fewest vectors of a strip in either, if there are rows enough: to begin and to add up takes time

// ---- the four types: how a vector of them is read and written; half types are computed in float

typedef float floats __attribute__((vector_size(REGISTER)));
typedef double doubles __attribute__((vector_size(REGISTER)));
typedef uint32_t words __attribute__((vector_size(REGISTER)));
typedef uint16_t halves __attribute__((vector_size(REGISTER / 2)));
typedef long long Half __attribute__((vector_size(REGISTER / 2)));      // Intel's name for any integers

struct Float { typedef float Stored, Computed; typedef floats Vector; };
struct Double { typedef double Stored, Computed; typedef doubles Vector; };
struct Bfloat16 { typedef uint16_t Stored; typedef float Computed; typedef floats Vector; };
template <class T> using Stored = typename T::Stored;
template <class T> using Computed = typename T::Computed;
template <class T> using Vector = typename T::Vector;
template <class T> constexpr int LANES = sizeof(Vector<T>) / sizeof(Computed<T>);

#ifdef INTRINSIC                                            // GCC 12 makes five instructions of these conversions, or goes lane by lane
struct Float16 { typedef uint16_t Stored; typedef float Computed; typedef floats Vector; };
static inline floats widen(halves bits, Float16) { return (floats)INTRINSIC(cvtph_ps)((Half)bits); }
static inline halves narrow(floats value, Float16) { return (halves)INTRINSIC(cvtps_ph)(value, _MM_FROUND_TO_NEAREST_INT); }
static inline words extend(halves bits) { return (words)INTRINSIC(cvtepu16_epi32)((Half)bits); }
#else
static inline words extend(halves bits) { return __builtin_convertvector(bits, words); }
#ifdef __FLT16_MAX__
struct Float16 { typedef _Float16 Stored; typedef float Computed; typedef floats Vector; };
typedef _Float16 float16s __attribute__((vector_size(REGISTER / 2)));
static inline floats widen(float16s value, Float16) { return __builtin_convertvector(value, floats); }
static inline float16s narrow(floats value, Float16) { return __builtin_convertvector(value, float16s); }
#endif
#endif

static inline floats widen(halves bits, Bfloat16) { return (floats)(extend(bits) << 16); }
static inline halves narrow(floats value, Bfloat16) {       // to the nearest, ties to even
    words bits = (words)value, rounded = bits + 0x7fff + ((bits >> 16) & 1), high = (value == value ? rounded : words{} + 0x7fc00000) >> 16;
    return __builtin_convertvector(high, halves);
}
template <class V, class T> static inline V widen(V value, T) { return value; }
template <class V, class T> static inline V narrow(V value, T) { return value; }

// n elements, and 0 in the other lanes: zeros add nothing to any gradient. What lies `ahead` of a whole vector, in the next tile, is fetched already.
template <class T> static inline Vector<T> load(const Stored<T>* from, int64_t n, int64_t ahead) {
    decltype(narrow(Vector<T>{}, T())) stored{};
    if (n == LANES<T>) __builtin_prefetch(from + ahead);
    __builtin_memcpy(&stored, from, n * sizeof *from);
    return widen(stored, T());
}
template <class T> static inline void store(Stored<T>* to, Vector<T> value, int64_t n, int64_t ahead) {
    auto stored = narrow(value, T());
    if (n == LANES<T>) __builtin_prefetch(to + ahead);                    // for reading: to fetch it for writing cost more than it saved
    __builtin_memcpy(to, &stored, n * sizeof *to);
}

// Signs by bit operations: a comparison would take three. -0 counts as 0.
template <class V> static inline V magnitude(V x) { typedef decltype(x < x) Bits; return (V)((Bits)x & ~(Bits)-V{}); }
template <class V> static inline V with_sign_of(V x, V value) { typedef decltype(x < x) Bits; return (V)((Bits)value ^ ((Bits)(x + 0) & (Bits)-V{})); }

// ---- the work: items of some rows by a chunk of every strip, for which threads ask one by one

struct Range { int64_t begin, end; };
struct Plan {
    int64_t groups, span, Ga, Gb, size, row, rows, strips, width, chunk, chunks, tile_rows, item_rows, items, ahead;

    Plan(int64_t rows, int64_t groups, int64_t span, int64_t Ga, int64_t Gb, int64_t lanes)
        : groups(groups), span(span), Ga(Ga), Gb(Gb), size(rows * groups * span), items(0) {
        if (!size) return;
        int64_t whole = std::lcm(groups * span, lanes);                     // so many neighbours are rows and are vectors
        bool by_lanes = span % lanes && whole <= WIDEST;
        row = by_lanes ? whole : groups * span;                             // with strips of one vector, several rows may be one here
        this->rows = (size + row - 1) / row;
        width = by_lanes ? lanes : span, strips = row / width;
        chunk = std::min(width, CHUNK), chunks = (width + chunk - 1) / chunk;
        tile_rows = std::max<int64_t>({1, TILE / (strips * chunk), IN_TILE * lanes / chunk});
        item_rows = std::max({tile_rows, ITEM / (strips * chunk), IN_ITEM * lanes / chunk});
        items = (this->rows + item_rows - 1) / item_rows * chunks;
        ahead = tile_rows > 1 ? tile_rows * row : TILE / 4;
    }
    int64_t group(int64_t strip, int lane) const { return width == span ? strip : int(strip * width + lane) / int(span) % int(groups); }

    // Calls strip(s, rows, columns) for every strip s of every tile of an item
    template <class Strip> inline __attribute__((always_inline)) void for_each_strip(int64_t item, const Strip& strip) const {
        int64_t first = item / chunks * item_rows, last = std::min(rows, first + item_rows);
        int64_t begin = item % chunks * chunk, end = std::min(width, begin + chunk);
        for (; first < last; first += tile_rows)
            for (int64_t s = 0; s < strips; s++) strip(s, Range{first, std::min(last, first + tile_rows)}, Range{s * width + begin, s * width + end});
    }

    // Calls visit(at, n) for every vector, `n` elements from `at`: the whole ones in a single loop, so that what visit adds up stays in registers,
    // then the ends of the rows where they are not whole, and the end of the tensor
    template <int lanes, class Visit> inline __attribute__((always_inline)) void for_each_vector(Range rows, Range columns, const Visit& visit) const {
        const int64_t row = this->row, size = this->size, length = columns.end - columns.begin, whole = length / lanes, tail = length % lanes;
        const int64_t inside = size < columns.end ? rows.begin : std::min(rows.end, (size - columns.end) / row + 1);       // the first row that is not
        int64_t at = rows.begin * row + columns.begin, left = whole;
        for (int64_t k = (inside - rows.begin) * whole; k > 0; k--) {
            visit(at, lanes);
            at += lanes;
            if (--left == 0) at += row - whole * lanes, left = whole;
        }
        for (int64_t r = tail ? rows.begin : inside; r < rows.end; r++) {
            at = r * row + columns.end - (tail ? tail : lanes);
            if (at < size) visit(at, tail ? tail : size - at);
        }
    }
};

// As libgomp's GOMP_parallel: calls work(data) on each of `threads` threads and waits. Given by the caller, so that torch's own threads are used.
typedef void (*Parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

template <class Item> static void for_each_item(int64_t items, Parallel parallel, int threads, const Item& item) {
    struct Share { alignas(64) std::atomic<int64_t> next; int64_t end; };
    struct Job { const Item& item; int threads; std::atomic<int> started; std::vector<Share> shares; };
    threads = std::max<int64_t>(1, std::min<int64_t>(threads, items));
    Job job{item, threads, {0}, std::vector<Share>(threads)};
    for (int t = 0; t < threads; t++) job.shares[t].next = items * t / threads, job.shares[t].end = items * (t + 1) / threads;
    auto work = [](void* data) {                                            // first a share of its own, which lies together, then what others have left
        Job& job = *static_cast<Job*>(data);
        int first = job.started++;
        for (int t = 0; t < job.threads; t++) {
            Share& share = job.shares[(first + t) % job.threads];
            for (int64_t i; (i = share.next.fetch_add(1)) < share.end;) job.item(i);
        }
    };
    if (threads == 1) work(&job);
    else if (parallel) parallel(work, &job, threads, 0);
    else {
        std::vector<std::thread> pool;
        for (int t = 1; t < threads; t++) pool.emplace_back(+work, &job);
        work(&job);
        for (auto& thread : pool) thread.join();
    }
}

// The coefficients of every strip, lane by lane: a_0 .. a_M, |b_1| .. |b_N|
template <class T> static std::vector<Vector<T>> coefficients(const Computed<T>* a, const Computed<T>* b, const Plan& plan) {
    std::vector<Vector<T>> table(plan.items ? plan.strips * COEFFICIENTS : 0);
    for (size_t i = 0; i < table.size(); i += COEFFICIENTS)
        for (int lane = 0; lane < LANES<T>; lane++) {
            int64_t g = plan.group(i / COEFFICIENTS, lane);
            const Computed<T>*A = a + g * plan.Ga / plan.groups * (M + 1), *B = b + g * plan.Gb / plan.groups * N;
            for (int k = 0; k <= M; k++) table[i + k][lane] = A[k];
            for (int j = 0; j < N; j++) table[i + M + 1 + j][lane] = std::max(B[j], -B[j]);
        }
    return table;
}

template <class T, class V = Vector<T>>
static void forward(const Stored<T>* x, const Computed<T>* a, const Computed<T>* b, Stored<T>* y, const Plan& plan, Parallel parallel, int threads) {
    const auto table = coefficients<T>(a, b, plan);
    for_each_item(plan.items, parallel, threads, [&, x, y](int64_t item) {
        plan.for_each_strip(item, [&, x = x, y = y, ahead = plan.ahead](int64_t s, Range rows, Range columns) {
            V A[M + 1], B[N + 1] = {V{} + 1};
            for (int k = 0; k < COEFFICIENTS; k++) (k <= M ? A[k] : B[k - M]) = table[s * COEFFICIENTS + k];
            plan.for_each_vector<LANES<T>>(rows, columns, [&, x = x, y = y, ahead = ahead](int64_t at, int64_t n) {
                V X = load<T>(x + at, n, ahead), Z = magnitude(X), P = A[M], Q = B[N];
                for (int i = M - 1; i >= 0; i--) P = P * X + A[i];
                for (int j = N - 1; j >= 0; j--) Q = Q * Z + B[j];
                store<T>(y + at, P / Q, n, ahead);
            });
        });
    });
}

template <class T, class V = Vector<T>>
static void backward(const Stored<T>* g, const Stored<T>* x, const Computed<T>* a, const Computed<T>* b, Stored<T>* dx, Computed<T>* da, Computed<T>* db,
                     const Plan& plan, Parallel parallel, int threads) {
    const auto table = coefficients<T>(a, b, plan);
    std::unique_ptr<V[]> sums(new V[plan.items * table.size()]);            // of every item and strip, lane by lane; not zeroed first: they are many
    for_each_item(plan.items, parallel, threads, [&, g, x, dx](int64_t item) {
        plan.for_each_strip(item, [&, g = g, x = x, dx = dx, ahead = plan.ahead](int64_t s, Range rows, Range columns) {
            V A[M + 1], B[N + 1] = {V{} + 1}, sum[COEFFICIENTS], *place = &sums[item * table.size() + s * COEFFICIENTS];
            bool first = rows.begin == item / plan.chunks * plan.item_rows;
            for (int k = 0; k < COEFFICIENTS; k++) (k <= M ? A[k] : B[k - M]) = table[s * COEFFICIENTS + k], sum[k] = first ? V{} : place[k];
            plan.for_each_vector<LANES<T>>(rows, columns, [&, g = g, x = x, dx = dx, ahead = ahead](int64_t at, int64_t n) {
                V X = load<T>(x + at, n, ahead), Z = magnitude(X), P = A[M], Q = B[N], dP = V{}, dQ = V{};
                for (int i = M - 1; i >= 0; i--) dP = i == M - 1 ? P : dP * X + P, P = P * X + A[i];        // the chain of P' runs one step behind
                for (int j = N - 1; j >= 0; j--) dQ = j == N - 1 ? Q : dQ * Z + Q, Q = Q * Z + B[j];
                V inverse = 1 / Q, F = P * inverse, t = load<T>(g + at, n, ahead) * inverse, v = t * F;
                store<T>(dx + at, t * (dP - F * with_sign_of(X, dQ)), n, ahead);
                sum[0] += t;                                                                // da_i = sum g x^i / Q
                for (int i = 1; i <= M; i++) sum[i] += t *= X;
                for (int j = 1; j <= N; j++) sum[M + j] += v *= Z;                          // db_j = -sign(b_j) sum g F |x|^j / Q
            });
            for (int k = 0; k < COEFFICIENTS; k++) place[k] = sum[k];
        });
    });
    std::vector<double> totals(table.size() * LANES<T>), A(plan.Ga * (M + 1)), B(plan.Gb * N + 1);
    for (int64_t item = 0; item < plan.items; item++)
        for (size_t i = 0; i < totals.size(); i++) totals[i] += ((const Computed<T>*)sums.get())[item * totals.size() + i];
    for (size_t i = 0; i < table.size(); i += COEFFICIENTS)
        for (int lane = 0; lane < LANES<T>; lane++) {
            int64_t g = plan.group(i / COEFFICIENTS, lane), ga = g * plan.Ga / plan.groups, gb = g * plan.Gb / plan.groups;
            for (int k = 0; k < COEFFICIENTS; k++) (k <= M ? A[ga * (M + 1) + k] : B[gb * N + k - M - 1]) += totals[(i + k) * LANES<T> + lane];
        }
    for (int64_t i = 0; i < plan.Ga * (M + 1); i++) da[i] = A[i];
    for (int64_t i = 0; i < plan.Gb * N; i++) db[i] = b[i] < 0 ? B[i] : -B[i];             // sign(0) = +1: a zero denominator learns
}

#define EXPORT(name, T)                                                                                                                               \
    extern "C" void forward_##name(const void* x, const void* a, const void* b, void* y, int64_t rows, int64_t groups, int64_t span, int64_t Ga,      \
                                   int64_t Gb, Parallel parallel, int threads) {                                                                      \
        forward<T>((const Stored<T>*)x, (const Computed<T>*)a, (const Computed<T>*)b, (Stored<T>*)y, {rows, groups, span, Ga, Gb, LANES<T>},          \
                   parallel, threads);                                                                                                                \
    }                                                                                                                                                 \
    extern "C" void backward_##name(const void* g, const void* x, const void* a, const void* b, void* dx, void* da, void* db, int64_t rows,           \
                                    int64_t groups, int64_t span, int64_t Ga, int64_t Gb, Parallel parallel, int threads) {                           \
        backward<T>((const Stored<T>*)g, (const Stored<T>*)x, (const Computed<T>*)a, (const Computed<T>*)b, (Stored<T>*)dx, (Computed<T>*)da,         \
                    (Computed<T>*)db, {rows, groups, span, Ga, Gb, LANES<T>}, parallel, threads);                                                     \
    }

EXPORT(float32, Float)
EXPORT(float64, Double)
EXPORT(bfloat16, Bfloat16)
#if defined(INTRINSIC) || defined(__FLT16_MAX__)
EXPORT(float16, Float16)
#endif
