/* Vectors of a processor's registers, and the exponential of each number of a row. */

#include <math.h>
#include <stdint.h>

#if defined(__AVX512F__)
#define WIDTH 16
#define VECTORS 4
#elif defined(__aarch64__)
#define WIDTH 4
#define VECTORS 4
#else
#define WIDTH 8
#define VECTORS 2
#endif
#define PANEL (WIDTH * VECTORS)
#define SMALL 65536 /* multiplications that one thread does alone */

typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t integers __attribute__((vector_size(4 * WIDTH), aligned(4)));

/* exp(x[i]) in place, each with the same bits wherever it is; within 2 units in the last place. */
void octavo_exp(float *x, int64_t count);

int octavo_experts(const float *x, int64_t x_row, const int64_t *index, const float *w, int64_t w_expert, int64_t w_inner,
                   int64_t w_column, float *y, const int32_t *ends, int64_t experts, int64_t inner, int64_t columns);
