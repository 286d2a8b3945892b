/* Depthwise convolution of float32 NCHW tensors, forward and backward, on one thread.
 *
 * "rows": stride 1 and rows that fill a vector; the compiler vectorises along a row.
 * "lanes": everything else; 16 images lie side by side in a vector.
 */
#include <string.h>

#define LANES 16
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef struct {
    int n, c, h, w; /* input */
    int ho, wo;     /* output */
    int k, s, p;    /* kernel size, stride, padding */
} sizes;

#define INLINE static inline __attribute__((always_inline))

/* Copy a plane into the middle of zeros. */
static void pad_plane(const float *x, float *out, int h, int w, int pad) {
    int wide = w + 2 * pad;
    memset(out, 0, sizeof(float) * (h + 2 * pad) * wide);
    for (int i = 0; i < h; i++) memcpy(out + (i + pad) * wide + pad, x + i * w, sizeof(float) * w);
}

INLINE void forward_plane(const float *in, const float *filter, float *out, int ho, int wo, int wide, int k) {
    for (int i = 0; i < ho; i++)
        for (int j = 0; j < wo; j++) {
            float sum = 0;
            for (int a = 0; a < k; a++)
                for (int b = 0; b < k; b++) sum += in[(i + a) * wide + b + j] * filter[a * k + b];
            out[i * wo + j] = sum;
        }
}

INLINE void backward_filter(const float *in, const float *dy, float *dw, int ho, int wo, int wide, int k) {
    for (int a = 0; a < k; a++) {
        float sums[16] = {0};
        for (int i = 0; i < ho; i++)
            for (int b = 0; b < k; b++) {
                float sum = 0;
                for (int j = 0; j < wo; j++) sum += in[(i + a) * wide + b + j] * dy[i * wo + j];
                sums[b] += sum;
            }
        for (int b = 0; b < k; b++) dw[a * k + b] += sums[b];
    }
}

INLINE void forward_rows_of(const float *x, const float *weight, float *y, sizes z, float *xs, int k) {
    for (long plane = 0; plane < (long)z.n * z.c; plane++) {
        pad_plane(x + plane * z.h * z.w, xs, z.h, z.w, z.p);
        forward_plane(xs, weight + plane % z.c * k * k, y + plane * z.ho * z.wo, z.ho, z.wo, z.w + 2 * z.p, k);
    }
}

INLINE void backward_rows_of(const float *x, const float *weight, const float *dy, float *dx, float *dw, sizes z,
                             float *xs, float *ys, int k) {
    memset(dw, 0, sizeof(float) * z.c * k * k);
    for (long plane = 0; plane < (long)z.n * z.c; plane++) {
        const float *filter = weight + plane % z.c * k * k, *d = dy + plane * z.ho * z.wo;
        float turned[256];
        for (int a = 0; a < k * k; a++) turned[a] = filter[k * k - 1 - a];
        pad_plane(x + plane * z.h * z.w, xs, z.h, z.w, z.p);
        pad_plane(d, ys, z.ho, z.wo, k - 1 - z.p);
        forward_plane(ys, turned, dx + plane * z.h * z.w, z.h, z.w, z.wo + 2 * (k - 1 - z.p), k);
        backward_filter(xs, d, dw + plane % z.c * k * k, z.ho, z.wo, z.w + 2 * z.p, k);
    }
}

void forward_rows(const float *x, const float *weight, float *y, sizes z, float *xs, float *ys, float *unused) {
    if (z.k == 3) forward_rows_of(x, weight, y, z, xs, 3);
    else if (z.k == 5) forward_rows_of(x, weight, y, z, xs, 5);
    else forward_rows_of(x, weight, y, z, xs, z.k);
}

void backward_rows(const float *x, const float *weight, const float *dy, float *dx, float *dw, sizes z, float *xs,
                   float *ys, float *unused) {
    if (z.k == 3) backward_rows_of(x, weight, dy, dx, dw, z, xs, ys, 3);
    else if (z.k == 5) backward_rows_of(x, weight, dy, dx, dw, z, xs, ys, 5);
    else backward_rows_of(x, weight, dy, dx, dw, z, xs, ys, z.k);
}

/* Put the same plane of up to 16 images into the middle of zero vectors. */
static void gather(const float *x, vector *out, int images, long step, int h, int w, int pad) {
    int wide = w + 2 * pad;
    memset(out, 0, sizeof(vector) * (h + 2 * pad) * wide);
    for (int i = 0; i < h; i++) {
        float *to = (float *)&out[(i + pad) * wide + pad];
        for (int m = 0; m < images; m++) {
            const float *from = x + m * step + i * w;
            for (int j = 0; j < w; j++) to[j * LANES + m] = from[j];
        }
    }
}

static void scatter(const vector *in, float *x, int images, long step, int h, int w, int pad) {
    int wide = w + 2 * pad;
    for (int i = 0; i < h; i++) {
        const float *from = (const float *)&in[(i + pad) * wide + pad];
        for (int m = 0; m < images; m++) {
            float *to = x + m * step + i * w;
            for (int j = 0; j < w; j++) to[j] = from[j * LANES + m];
        }
    }
}

void forward_lanes(const float *x, const float *weight, float *y, sizes z, vector *xs, vector *ys, vector *unused) {
    int wide = z.w + 2 * z.p;
    long in = (long)z.c * z.h * z.w, out = (long)z.c * z.ho * z.wo;
    for (int n = 0; n < z.n; n += LANES)
        for (int c = 0; c < z.c; c++) {
            int images = z.n - n < LANES ? z.n - n : LANES;
            const float *filter = weight + c * z.k * z.k;
            gather(x + n * in + (long)c * z.h * z.w, xs, images, in, z.h, z.w, z.p);
            for (int i = 0; i < z.ho; i++)
                for (int j = 0; j < z.wo; j++) {
                    vector sum = {0};
                    const vector *from = xs + i * z.s * wide + j * z.s;
                    for (int a = 0; a < z.k; a++)
                        for (int b = 0; b < z.k; b++) sum += from[a * wide + b] * filter[a * z.k + b];
                    ys[i * z.wo + j] = sum;
                }
            scatter(ys, y + n * out + (long)c * z.ho * z.wo, images, out, z.ho, z.wo, 0);
        }
}

void backward_lanes(const float *x, const float *weight, const float *dy, float *dx, float *dw, sizes z, vector *xs,
                    vector *ys, vector *dxs) {
    int wide = z.w + 2 * z.p;
    long in = (long)z.c * z.h * z.w, out = (long)z.c * z.ho * z.wo;
    memset(dw, 0, sizeof(float) * z.c * z.k * z.k);
    for (int n = 0; n < z.n; n += LANES)
        for (int c = 0; c < z.c; c++) {
            int images = z.n - n < LANES ? z.n - n : LANES;
            gather(x + n * in + (long)c * z.h * z.w, xs, images, in, z.h, z.w, z.p);
            gather(dy + n * out + (long)c * z.ho * z.wo, ys, images, out, z.ho, z.wo, 0);
            memset(dxs, 0, sizeof(vector) * (z.h + 2 * z.p) * wide);
            for (int a = 0; a < z.k; a++)
                for (int b = 0; b < z.k; b++) {
                    float factor = weight[(c * z.k + a) * z.k + b], total = 0;
                    vector sum = {0};
                    for (int i = 0; i < z.ho; i++) {
                        const vector *from = xs + (i * z.s + a) * wide + b, *d = ys + i * z.wo;
                        vector *to = dxs + (i * z.s + a) * wide + b;
                        for (int j = 0; j < z.wo; j++) {
                            sum += from[j * z.s] * d[j];
                            to[j * z.s] += factor * d[j];
                        }
                    }
                    for (int m = 0; m < images; m++) total += sum[m];
                    dw[(c * z.k + a) * z.k + b] += total;
                }
            scatter(dxs, dx + n * in + (long)c * z.h * z.w, images, in, z.h, z.w, z.p);
        }
}
