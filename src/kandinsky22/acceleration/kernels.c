/* What plain torch cannot do in one pass: the normalisation of layers.Norm, the three transforms of a Winograd
 * convolution, and products of few rows.
 *
 * Activations are channels last, [B, H, W, C], with C a multiple of 16, float32, or for the normalisation bfloat16
 * (`half`); weights are either; intermediate values are float32. Plain C with one vector type, compiled once for each
 * instruction set; `kernels.py` chooses the library, and calls it by pointer.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16 /* floats of one register; wider vectors would be kept in memory: 2 to 10 times slower */
#else
#define LANES 8
#endif
#define INLINE static inline __attribute__((always_inline))
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));
static const vec ZERO = {0};

INLINE vec load(const void *from, long i, int half) {
    if (half) {
        hvec h;
        memcpy(&h, (const uint16_t *)from + i, sizeof h);
        return (vec)(__builtin_convertvector(h, uvec) << 16);
    }
    vec x;
    memcpy(&x, (const float *)from + i, sizeof x);
    return x;
}

INLINE void store(void *to, long i, vec x, int half) {
    if (half) { /* rounds to nearest, ties to even; NaN stays NaN */
        uvec u = (uvec)x;
        uvec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
        uvec nan = (uvec)(x != x);
        hvec h = __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), hvec);
        memcpy((uint16_t *)to + i, &h, sizeof h);
    } else
        memcpy((float *)to + i, &x, sizeof x);
}

INLINE float at(const void *from, long i, int half) {
    if (!half) return ((const float *)from)[i];
    uint32_t u = (uint32_t)((const uint16_t *)from)[i] << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

INLINE vec choose(ivec where, vec yes, vec no) { return (vec)((where & (ivec)yes) | (~where & (ivec)no)); }

/* e^x to 2 units in the last place, for x in [-87, 88]: 2^n times a polynomial in the remainder, at most ln(2) / 2. */
INLINE vec exponential(vec x) {
    const float rounder = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    vec n = (x * 1.44269504f + rounder) - rounder;
    vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
}

INLINE vec silu(vec x) {
    vec y = choose(x > -87.0f, x, ZERO - 87.0f);
    y = choose(y < 87.0f, y, ZERO + 87.0f);
    return x / (1.0f + exponential(-y));
}

/* Mean and variance of each group of each picture of x [B, cells, C], to mean and variance [B, groups].
 *
 * Sums are of differences from the group's first value, so that a large mean costs no precision: in float32 within a
 * chunk of cells, in float64 over chunks, and in the same order for any number of threads.
 */
enum { CELLS = 256 };

INLINE void some_moments(const void *x, long cells, long C, long groups, const float *pivot, double *sums, int half) {
    long size = C / groups;
    for (long c = 0; c < C; c += LANES) {
        vec p, s = ZERO, q = ZERO;
        memcpy(&p, pivot + c, sizeof p);
        for (long i = 0; i < cells; i++) {
            vec d = load(x, i * C + c, half) - p;
            s += d;
            q += d * d;
        }
        for (int k = 0; k < LANES; k++) {
            sums[2 * ((c + k) / size)] += s[k];
            sums[2 * ((c + k) / size) + 1] += q[k];
        }
    }
}

INLINE void all_moments(const void *x, float *mean, float *variance, long B, long cells, long C, long groups, int half, int threads) {
    long chunks = (cells + CELLS - 1) / CELLS, bytes = half ? 2 : 4;
    double *sums = calloc(B * chunks * groups, 2 * sizeof(double));
    float *pivots = malloc(B * C * sizeof(float));
    for (long i = 0; i < B * C; i++) {
        long b = i / C, c = i % C, size = C / groups;
        pivots[i] = at(x, b * cells * C + c / size * size, half);
    }
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = 0; i < B * chunks; i++) {
        long b = i / chunks, first = i % chunks * CELLS, count = cells - first < CELLS ? cells - first : CELLS;
        const char *from = (const char *)x + (b * cells + first) * C * bytes;
        some_moments(from, count, C, groups, pivots + b * C, sums + 2 * i * groups, half);
    }
    for (long b = 0; b < B; b++)
        for (long g = 0; g < groups; g++) {
            double s = 0, q = 0, n = (double)cells * (C / groups);
            for (long k = 0; k < chunks; k++) {
                s += sums[2 * ((b * chunks + k) * groups + g)];
                q += sums[2 * ((b * chunks + k) * groups + g) + 1];
            }
            mean[b * groups + g] = (float)(s / n) + pivots[b * C + g * (C / groups)];
            variance[b * groups + g] = (float)fmax(q / n - s / n * (s / n), 0);
        }
    free(sums);
    free(pivots);
}

void moments(const void *x, float *mean, float *variance, long B, long cells, long C, long groups, int half, int threads) {
    if (half) all_moments(x, mean, variance, B, cells, C, groups, 1, threads);
    else all_moments(x, mean, variance, B, cells, C, groups, 0, threads);
}

/* y = silu(((x - mean) / sqrt(variance + eps) * weight + bias) * scale + shift) over [B, H, W, C].
 *
 * scale and shift, if any, have h x w cells, each for H / h x W / w cells of x; `row`, `line` and `step` are their
 * strides from picture to picture, line to line and cell to cell.
 */
INLINE void normalised_line(const void *x, void *y, const float *a, const float *d, const void *scale, const void *shift, long W,
                            long C, long wide, long step, long silus, int half) {
    for (long j = 0; j < W; j++)
        for (long c = 0; c < C; c += LANES) {
            vec v = load(x, j * C + c, half) * load(a, c, 0) + load(d, c, 0);
            if (scale) v = v * load(scale, j / wide * step + c, half) + load(shift, j / wide * step + c, half);
            store(y, j * C + c, silus ? silu(v) : v, half);
        }
}

void normalise(const void *x, void *y, const float *mean, const float *variance, const void *weight, const void *bias, float eps,
               const void *scale, const void *shift, long h, long w, long row, long line, long step, long B, long H, long W,
               long C, long groups, long silus, int half, int threads) {
    long bytes = half ? 2 : 4, size = C / groups;
    float *a = malloc(2 * B * C * sizeof(float)), *d = a + B * C;
    for (long i = 0; i < B * C; i++) {
        long g = i / C * groups + i % C / size;
        a[i] = at(weight, i % C, half) / sqrtf(variance[g] + eps);
        d[i] = at(bias, i % C, half) - mean[g] * a[i];
    }
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = 0; i < B * H; i++) {
        long b = i / H, offset = (b * row + i % H / (H / h) * line) * bytes;
        const char *from = (const char *)x + i * W * C * bytes;
        char *to = (char *)y + i * W * C * bytes;
        const char *by = scale ? (const char *)scale + offset : 0, *plus = scale ? (const char *)shift + offset : 0;
        if (half) normalised_line(from, to, a + b * C, d + b * C, by, plus, W, C, W / w, step, silus, 1);
        else normalised_line(from, to, a + b * C, d + b * C, by, plus, W, C, W / w, step, silus, 0);
    }
    free(a);
}

/* Winograd's F(4,3) in one dimension, for points 0, p, -p, q, -q and infinity, from every `s`-th value of x to every
 * `t`-th of the result: 6 cells of a picture to 6 points, and 6 products to 4 outputs. winograd.py has the matrices
 * and explains p and q.
 */
INLINE void in_1d(const vec *x, int s, vec *v, int t, float p, float q) {
    vec even = x[4 * s] - q * q * x[2 * s], odd = p * x[3 * s] - p * q * q * x[s];
    vec even2 = x[4 * s] - p * p * x[2 * s], odd2 = q * x[3 * s] - q * p * p * x[s];
    v[0] = p * p * q * q * x[0] - (p * p + q * q) * x[2 * s] + x[4 * s];
    v[t] = even + odd;
    v[2 * t] = even - odd;
    v[3 * t] = even2 + odd2;
    v[4 * t] = even2 - odd2;
    v[5 * t] = p * p * q * q * x[s] - (p * p + q * q) * x[3 * s] + x[5 * s];
}

INLINE void out_1d(const vec *x, int s, vec *y, int t, float p, float q) {
    vec sum = x[s] + x[2 * s], difference = x[s] - x[2 * s];
    vec sum2 = x[3 * s] + x[4 * s], difference2 = x[3 * s] - x[4 * s];
    y[0] = x[0] + sum + sum2;
    y[t] = p * difference + q * difference2;
    y[2 * t] = p * p * sum + q * q * sum2;
    y[3 * t] = p * p * p * difference + q * q * q * difference2 + x[5 * s];
}

/* x [B, H, W, C] to v [products, B * rows * columns, C]. The first tiles begin at line `first`; outside x are zeros.
 * `doubled`: x is upsampled by two first.
 */
void transform_in(const float *x, float *v, long B, long H, long W, long C, long rows, long columns, long first, float p,
                  float q, long doubled, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = 0; i < B * rows * columns; i++) {
        const float *from = x + i / (rows * columns) * H * W * C;
        long top = first + i / columns % rows * 4, left = i % columns * 4 - 1;
        for (long c = 0; c < C; c += LANES) {
            vec in[36], half_way[36], out[36];
            for (int k = 0; k < 36; k++) {
                long h = top + k / 6, w = left + k % 6;
                int outside = h < 0 || w < 0 || h >> doubled >= H || w >> doubled >= W;
                in[k] = outside ? ZERO : load(from, ((h >> doubled) * W + (w >> doubled)) * C + c, 0);
            }
            for (int k = 0; k < 6; k++) in_1d(in + k, 6, half_way + k, 6, p, q);
            for (int r = 0; r < 6; r++) in_1d(half_way + r * 6, 1, out + r * 6, 1, p, q);
            for (int k = 0, to = 0; k < 36; k++)
                if (!doubled || (k / 6 != 2 && k % 6 != 2)) store(v, (to++ * B * rows * columns + i) * C + c, out[k], 0);
        }
    }
}

/* Products v [products, B * rows * columns, C] to y [B, H, W, C], with the bias [C] added. */
void transform_out(const float *v, const float *bias, float *y, long B, long H, long W, long C, long rows, long columns, float p,
                   float q, long doubled, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = 0; i < B * rows * columns; i++) {
        float *to = y + i / (rows * columns) * H * W * C;
        long top = i / columns % rows * 4, left = i % columns * 4;
        for (long c = 0; c < C; c += LANES) {
            vec in[36], half_way[24], out[16], b = load(bias, c, 0);
            long from = i * C + c;
            for (int k = 0; k < 36; k++) {
                int none = doubled && (k / 6 == 2 || k % 6 == 2);
                in[k] = none ? ZERO : load(v, from, 0);
                from += none ? 0 : B * rows * columns * C;
            }
            for (int k = 0; k < 6; k++) out_1d(in + k, 6, half_way + k, 6, p, q);
            for (int r = 0; r < 4; r++) out_1d(half_way + r * 6, 1, out + r * 4, 1, p, q);
            for (int r = 0; r < 4 && top + r < H; r++)
                for (int k = 0; k < 4 && left + k < W; k++) store(to, ((top + r) * W + left + k) * C + c, out[r * 4 + k] + b, 0);
        }
    }
}

/* One line of points of the transform of n filters w [n, 9] to u [side, n]: that of row `line` of g [side, 3], which
 * is G.
 */
enum { FILTERS = 256 };

INLINE void some_filters(const void *w, float *u, const float *g, long line, long side, long n, long first, long count, int half) {
    float taps[3][FILTERS];
    const float *by = g + 3 * line;
    for (long c = 0; c < 3; c++)
        for (long i = 0, k = first * 9 + c; i < count; i++, k += 9)
            taps[c][i] = by[0] * at(w, k, half) + by[1] * at(w, k + 3, half) + by[2] * at(w, k + 6, half);
    for (long r = 0; r < side; r++, g += 3)
        for (long i = 0; i < count; i++)
            u[r * n + first + i] = g[0] * taps[0][i] + g[1] * taps[1][i] + g[2] * taps[2][i];
}

void transform_filters(const void *w, float *u, const float *g, long line, long side, long n, int half, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long first = 0; first < n; first += FILTERS) {
        long count = n - first < FILTERS ? n - first : FILTERS;
        if (half) some_filters(w, u, g, line, side, n, first, count, 1);
        else some_filters(w, u, g, line, side, n, first, count, 0);
    }
}

/* y [rows, outputs] = x [rows, inputs] times w [outputs, inputs] transposed, plus a bias, if any, for up to 8 rows.
 *
 * The time is spent on reading w, so each of its vectors is read once and multiplied by all rows. x, bias and y are
 * float32. All sums stay in registers (with AVX2, for some rows, not quite all, and it still reads at the speed of
 * memory).
 */
INLINE void some_outputs(const void *w, const float *x, const float *bias, float *y, long outputs, long inputs, int rows, int at_once,
                         int half) {
    vec sums[4][8] = {{ZERO}};
    for (long k = 0; k < inputs; k += LANES) {
        vec seen[8];
        for (int m = 0; m < rows; m++) seen[m] = load(x, m * inputs + k, 0);
        for (int r = 0; r < at_once; r++) {
            vec weight = load(w, r * inputs + k, half);
            /* into L2: L1 is busy */
            __builtin_prefetch((const char *)w + ((r + at_once) * inputs + k) * (half ? 2 : 4), 0, 2);
            for (int m = 0; m < rows; m++) sums[r][m] += weight * seen[m];
        }
    }
    for (int r = 0; r < at_once; r++)
        for (int m = 0; m < rows; m++) {
            float sum = bias ? bias[r] : 0;
            for (int k = 0; k < LANES; k++) sum += sums[r][m][k];
            y[m * outputs + r] = sum;
        }
}

#define ROWS(n)                                                                                                                        \
    if (rows == n) half ? some_outputs(from, x, plus, to, outputs, inputs, n, n > 6 ? 2 : 4, 1)                                         \
                        : some_outputs(from, x, plus, to, outputs, inputs, n, n > 6 ? 2 : 4, 0);

void few_rows(const void *w, const float *x, const float *bias, float *y, long rows, long outputs, long inputs, int half, int threads) {
    long at_once = rows > 6 ? 2 : 4;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long o = 0; o < outputs; o += at_once) {
        const char *from = (const char *)w + o * inputs * (half ? 2 : 4);
        const float *plus = bias ? bias + o : 0;
        float *to = y + o;
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8)
    }
}
