/* Matrix products in fp32 whose sums are taken one number after the other, in the order of the inner index, each by one
 * fused multiply-add where the processor has it. A row's bits depend on the row and the matrix alone.
 *
 * A tile is up to ROWS rows by one panel of PANEL columns, held in registers. Compiled by `compiled.py`; plain C with the
 * vector types of gcc and clang.
 */

#include <stdlib.h>

#include "vectors.h"

#define ROWS 6

/* y[r] = x[r] @ w for R rows and one panel; w: [inner, PANEL], rows `stride` numbers apart. */
#define TILE(R)                                                                                                        \
    static void tile##R(const float *const *x, const float *w, int64_t stride, int64_t inner, float *const *y)         \
    {                                                                                                                  \
        vector sum[R][VECTORS];                                                                                        \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int v = 0; v < VECTORS; v++)                                                                          \
                sum[r][v] = (vector){0};                                                                               \
        for (int64_t k = 0; k < inner; k++) {                                                                          \
            vector b[VECTORS];                                                                                         \
            for (int v = 0; v < VECTORS; v++)                                                                          \
                b[v] = *(const vector *)(w + k * stride + v * WIDTH);                                                  \
            for (int r = 0; r < R; r++) {                                                                              \
                const float a = x[r][k];                                                                               \
                for (int v = 0; v < VECTORS; v++)                                                                      \
                    sum[r][v] += a * b[v];                                                                             \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int v = 0; v < VECTORS; v++)                                                                          \
                *(vector *)(y[r] + v * WIDTH) = sum[r][v];                                                             \
    }

TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)

static void tile(int rows, const float *const *x, const float *w, int64_t stride, int64_t inner, float *const *y)
{
    switch (rows) {
    case 1: tile1(x, w, stride, inner, y); break;
    case 2: tile2(x, w, stride, inner, y); break;
    case 3: tile3(x, w, stride, inner, y); break;
    case 4: tile4(x, w, stride, inner, y); break;
    case 5: tile5(x, w, stride, inner, y); break;
    default: tile6(x, w, stride, inner, y);
    }
}

/* One panel of columns, from column `first` on. w: strides of the inner dimension and of the columns; `packed` has room
 * for [inner, PANEL], for panels that are cut or not contiguous. */
static void panel(const float *x, int64_t x_row, const int64_t *index, const float *w, int64_t w_inner, int64_t w_column,
                  float *y, int64_t rows, int64_t inner, int64_t columns, int64_t first, float *packed)
{
    const int64_t wide = columns - first < PANEL ? columns - first : PANEL;
    const float *from = w + first * w_column;
    int64_t stride = w_inner;
    if (wide < PANEL || w_column != 1) {
        for (int64_t k = 0; k < inner; k++)
            for (int64_t j = 0; j < PANEL; j++)
                packed[k * PANEL + j] = j < wide ? from[k * w_inner + j * w_column] : 0;
        from = packed;
        stride = PANEL;
    }
    float cut[ROWS][PANEL];
    for (int64_t done = 0; done < rows;) {
        const int64_t left = rows - done;
        const int some = (int)(left <= ROWS ? left : left < 2 * ROWS ? (left + 1) / 2 : ROWS);
        const float *in[ROWS];
        float *out[ROWS];
        for (int r = 0; r < some; r++) {
            in[r] = x + (index ? index[done + r] : done + r) * x_row;
            out[r] = wide < PANEL ? cut[r] : y + (done + r) * columns + first;
        }
        tile(some, in, from, stride, inner, out);
        if (wide < PANEL)
            for (int r = 0; r < some; r++)
                for (int64_t j = 0; j < wide; j++)
                    y[(done + r) * columns + first + j] = cut[r][j];
        done += some;
    }
}

/* y [rows, columns] = x @ w. x: rows `x_row` numbers apart; with `index` its rows index[0], index[1], ... w: [inner,
 * columns] of any strides. y: contiguous. Returns 0, or 1 without memory. */
int octavo_rows(const float *x, int64_t x_row, const float *w, int64_t w_inner, int64_t w_column, float *y, int64_t rows,
                int64_t inner, int64_t columns)
{
    int failed = 0;
    const int64_t panels = (columns + PANEL - 1) / PANEL;
    const int packs = w_column != 1 || columns % PANEL;
#pragma omp parallel if (rows * inner * columns > SMALL)
    {
        float *packed = packs ? malloc(sizeof(float) * (size_t)(inner * PANEL + 1)) : 0;
        if (packs && !packed)
#pragma omp atomic write
            failed = 1;
#pragma omp for schedule(static)
        for (int64_t number = 0; number < panels; number++)
            if (!packs || packed)
                panel(x, x_row, 0, w, w_inner, w_column, y, rows, inner, columns, number * PANEL, packed);
        free(packed);
    }
    return failed;
}

/* The same for experts: rows up to ends[0] with matrix 0, those up to ends[1] with matrix 1, and so on. Matrices are
 * `w_expert` numbers apart. index: as above, of all rows, or 0. */
int octavo_experts(const float *x, int64_t x_row, const int64_t *index, const float *w, int64_t w_expert, int64_t w_inner,
                   int64_t w_column, float *y, const int32_t *ends, int64_t experts, int64_t inner, int64_t columns)
{
    int failed = 0;
#pragma omp parallel if (experts && (int64_t)ends[experts - 1] * inner * columns > SMALL)
    {
        float *packed = malloc(sizeof(float) * (size_t)(inner * PANEL + 1));
        if (!packed)
#pragma omp atomic write
            failed = 1;
#pragma omp for schedule(dynamic)
        for (int64_t expert = 0; expert < experts; expert++) {
            const int64_t start = expert ? ends[expert - 1] : 0, rows = ends[expert] - start;
            for (int64_t first = 0; packed && rows > 0 && first < columns; first += PANEL)
                panel(index ? x : x + start * x_row, x_row, index ? index + start : 0, w + expert * w_expert, w_inner,
                      w_column, y + start * columns, rows, inner, columns, first, packed);
        }
        free(packed);
    }
    return failed;
}
