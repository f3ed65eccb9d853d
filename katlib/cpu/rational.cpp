// The group-rational function on a CPU: F(x) = P(x) / Q(x), P = a_0 + ... + a_M x^M, Q = 1 + |b_1||x| + ... + |b_N||x|^N,
// and its backward, for x (rows, G, span), a (G, M + 1), b (G, N). The degrees M and N are given by the compiler's -D options: `__init__.py`
// compiles this file at first use, once for each pair of degrees.
//
// Sixteen neighbours at a time are one vector (GCC's and Clang's vector extension, so the same source serves AVX-512, AVX2 and NEON). The work is
// cut into items of about 16,000 elements. Threads take items in any order, but each item's coefficient gradients go to a place of their
// own and are added up in the order of the items: the result has the same bits whatever the threads did and however many there were.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

constexpr int LANES = 16, COEFFICIENTS = M + 1 + N;
constexpr int64_t ITEM = 16384, CHUNK = 2048;      // elements of an item; most elements of one group in one row of it

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef double doubles __attribute__((vector_size(8 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

// ---- the four types: how sixteen of them are read and written; half types are computed in float

struct Float { typedef float Stored; typedef float Computed; typedef floats Vector; };
struct Double { typedef double Stored; typedef double Computed; typedef doubles Vector; };
struct Bfloat16 { typedef uint16_t Stored; typedef float Computed; typedef floats Vector; };

static floats widen(halves bits, Bfloat16) {
    return (floats)(__builtin_convertvector(bits, words) << 16);
}
static halves narrow(floats value, Bfloat16) {                              // to the nearest, ties to even
    words bits = (words)value;
    words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector((words)(value == value ? rounded : words{} + 0x7fc0), halves);
}
static floats widen(floats value, Float) { return value; }
static floats narrow(floats value, Float) { return value; }
static doubles widen(doubles value, Double) { return value; }
static doubles narrow(doubles value, Double) { return value; }

#ifdef __FLT16_MAX__
struct Float16 { typedef _Float16 Stored; typedef float Computed; typedef floats Vector; };
typedef _Float16 float16s __attribute__((vector_size(2 * LANES)));
static floats widen(float16s value, Float16) { return __builtin_convertvector(value, floats); }
static float16s narrow(floats value, Float16) { return __builtin_convertvector(value, float16s); }
#endif

// n elements from `at`, and 0 in the other lanes: zeros add nothing to any gradient. Beyond n lies the next group, which may be read and is masked;
// only at the very end of the tensor, of `size` elements, is there nothing to read.
template <class T> static inline typename T::Vector load(const typename T::Stored* from, int64_t at, int64_t n, int64_t size) {
    typedef typename T::Vector V;
    const V lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    decltype(narrow(V{}, T())) stored{};
    if (n == LANES || at + LANES <= size) memcpy(&stored, from + at, sizeof stored);
    else memcpy(&stored, from + at, n * sizeof *from);
    V value = widen(stored, T());
    return n == LANES ? value : lane < V{} + (typename T::Computed)n ? value : V{};
}
template <class T> static void store(typename T::Stored* to, typename T::Vector value, int64_t n) {
    auto stored = narrow(value, T());
    if (n == LANES) memcpy(to, &stored, sizeof stored);
    else memcpy(to, &stored, n * sizeof *to);
}

// ---- the work: items of ROWS rows by CHUNK elements of every group, for which threads ask one by one

// As libgomp's GOMP_parallel: calls work(data) on each of `threads` threads and waits. Given by the caller, so that torch's own threads are used.
typedef void (*Parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

struct Shape {
    int64_t rows, groups, span;
    int64_t chunk() const { return std::min(span, CHUNK); }
    int64_t item_rows() const { return std::max<int64_t>(1, ITEM / (groups * chunk())); }
    int64_t chunks() const { return (span + chunk() - 1) / chunk(); }
    bool empty() const { return rows * groups * span == 0; }
    int64_t items() const { return empty() ? 0 : (rows + item_rows() - 1) / item_rows() * chunks(); }
};

template <class Item> static void for_each_item(const Shape& shape, Parallel parallel, int threads, const Item& item) {
    struct Job { const Item& item; int64_t items; std::atomic<int64_t> next; } job{item, shape.items(), {0}};
    auto work = [](void* data) {
        Job& job = *static_cast<Job*>(data);
        for (int64_t i; (i = job.next.fetch_add(1)) < job.items;) job.item(i);
    };
    threads = std::min<int64_t>(threads, job.items);
    if (threads <= 1) work(&job);
    else if (parallel) parallel(work, &job, threads, 0);
    else {
        std::vector<std::thread> pool;
        for (int t = 1; t < threads; t++) pool.emplace_back(+work, &job);
        work(&job);
        for (auto& thread : pool) thread.join();
    }
}

// Calls visit(offset, n) for every vector of group g in an item: `n` elements from `offset`
template <class Visit> static inline __attribute__((always_inline)) void for_each_vector(const Shape& shape, int64_t item, int64_t g, const Visit& visit) {
    int64_t row = item / shape.chunks() * shape.item_rows(), last_row = std::min(shape.rows, row + shape.item_rows());
    int64_t begin = item % shape.chunks() * shape.chunk(), end = std::min(shape.span, begin + shape.chunk());
    for (; row < last_row; row++) {
        int64_t base = (row * shape.groups + g) * shape.span, s = begin;
        for (; s + LANES <= end; s += LANES) visit(base + s, LANES);
        if (end - s == LANES / 2) visit(base + s, LANES / 2);               // 24 channels: a constant here saves the general copy
        else if (s < end) visit(base + s, end - s);
    }
}

template <class V> static inline V magnitude(V x) { return x < 0 ? -x : x; }

template <class T> static void forward(const typename T::Stored* x, const typename T::Computed* a, const typename T::Computed* b,
                                       typename T::Stored* y, Shape shape, Parallel parallel, int threads) {
    typedef typename T::Vector V;
    const int64_t size = shape.rows * shape.groups * shape.span;
    for_each_item(shape, parallel, threads, [=](int64_t item) {
        for (int64_t g = 0; g < shape.groups; g++) {
            V A[M + 1], B[N + 1];                                           // B[j] = |b_j|, B[0] = 1
            for (int i = 0; i <= M; i++) A[i] = V{} + a[g * (M + 1) + i];
            for (int j = 0; j <= N; j++) B[j] = magnitude(V{} + (j ? b[g * N + j - 1] : 1));
            for_each_vector(shape, item, g, [&](int64_t at, int64_t n) {
                V X = load<T>(x, at, n, size), Z = magnitude(X), P = A[M], Q = B[N];
                for (int i = M - 1; i >= 0; i--) P = P * X + A[i];
                for (int j = N - 1; j >= 0; j--) Q = Q * Z + B[j];
                store<T>(y + at, P / Q, n);
            });
        }
    });
}

template <class T> static void backward(const typename T::Stored* grad, const typename T::Stored* x, const typename T::Computed* a,
                                        const typename T::Computed* b, typename T::Stored* dx, typename T::Computed* da,
                                        typename T::Computed* db, Shape shape, Parallel parallel, int threads) {
    typedef typename T::Vector V;
    const int64_t size = shape.rows * shape.groups * shape.span;
    std::vector<double> partial(shape.items() * shape.groups * COEFFICIENTS);
    for_each_item(shape, parallel, threads, [=, &partial](int64_t item) {
        for (int64_t g = 0; g < shape.groups; g++) {
            V A[M + 1], B[N + 1], sum[COEFFICIENTS] = {};
            for (int i = 0; i <= M; i++) A[i] = V{} + a[g * (M + 1) + i];
            for (int j = 0; j <= N; j++) B[j] = magnitude(V{} + (j ? b[g * N + j - 1] : 1));
            for_each_vector(shape, item, g, [&](int64_t at, int64_t n) {
                V X = load<T>(x, at, n, size), Z = magnitude(X), P = A[M], Q = B[N], dP = V{}, dQ = V{};
                for (int i = M - 1; i >= 0; i--) dP = dP * X + P, P = P * X + A[i];         // the chain of P' runs one step behind
                for (int j = N - 1; j >= 0; j--) dQ = dQ * Z + Q, Q = Q * Z + B[j];         // dQ / d|x|
                V inverse = 1 / Q, F = P * inverse, t = load<T>(grad, at, n, size) * inverse, v = -t * F;
                store<T>(dx + at, t * (dP - F * (X < 0 ? -dQ : dQ)), n);
                sum[0] += t;                                                                // da_i = sum g x^i / Q
                for (int i = 1; i <= M; i++) sum[i] += t *= X;
                for (int j = 1; j <= N; j++) sum[M + j] += v *= Z;                          // db_j = -sign(b_j) sum g F |x|^j / Q
            });
            for (int k = 0; k < COEFFICIENTS; k++)
                for (int lane = 0; lane < LANES; lane++) partial[(item * shape.groups + g) * COEFFICIENTS + k] += sum[k][lane];
        }
    });
    for (int64_t g = 0; g < shape.groups; g++)
        for (int k = 0; k < COEFFICIENTS; k++) {
            double total = 0;
            for (int64_t item = 0; item < shape.items(); item++) total += partial[(item * shape.groups + g) * COEFFICIENTS + k];
            if (k <= M) da[g * (M + 1) + k] = total;
            else db[g * N + k - M - 1] = b[g * N + k - M - 1] < 0 ? -total : total;         // sign(0) = +1: a zero denominator learns
        }
}

#define EXPORT(name, T)                                                                                                           \
    extern "C" void forward_##name(const void* x, const void* a, const void* b, void* y, int64_t rows, int64_t groups,           \
                                   int64_t span, Parallel parallel, int threads) {                                               \
        forward<T>((const T::Stored*)x, (const T::Computed*)a, (const T::Computed*)b, (T::Stored*)y, {rows, groups, span},       \
                   parallel, threads);                                                                                           \
    }                                                                                                                            \
    extern "C" void backward_##name(const void* g, const void* x, const void* a, const void* b, void* dx, void* da, void* db,    \
                                    int64_t rows, int64_t groups, int64_t span, Parallel parallel, int threads) {                \
        backward<T>((const T::Stored*)g, (const T::Stored*)x, (const T::Computed*)a, (const T::Computed*)b, (T::Stored*)dx,      \
                    (T::Computed*)da, (T::Computed*)db, {rows, groups, span}, parallel, threads);                                \
    }

EXPORT(float32, Float)
EXPORT(float64, Double)
EXPORT(bfloat16, Bfloat16)
#ifdef __FLT16_MAX__
EXPORT(float16, Float16)
#endif
