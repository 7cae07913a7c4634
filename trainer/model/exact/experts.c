/* A mixture of experts in fp32 between its products: selection, order, activation and sum. */

#include <stdlib.h>

#include "vectors.h"

static integers chosen(integers where, integers a, integers b)
{
    return (where & a) | (~where & b);
}

static vector exponential(vector x)
{
    const vector zero = {0}, low = zero - 104.5f, high = zero + 89.0f; /* the results are 0 and infinity */
    x = (vector)chosen(x < low, (integers)low, (integers)x);
    x = (vector)chosen(x > high, (integers)high, (integers)x);
    const vector shift = zero + 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    const vector moved = x * 1.44269504f + shift;
    const integers power = (integers)moved - (integers)shift;
    const vector n = moved - shift;
    const vector r = x - n * 0.693359375f - n * -2.12194440e-4f; /* ln 2 in two parts */
    vector y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1;
    const integers half = power >> 1; /* in two parts, for results near the ends of the range */
    return y * (vector)((half + 127) << 23) * (vector)((power - half + 127) << 23);
}

void __attribute__((noinline)) octavo_exp(float *x, int64_t count)
{
    int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH)
        *(vector *)(x + i) = exponential(*(vector *)(x + i));
    if (i < count) {
        float rest[WIDTH] = {0};
        for (int64_t j = i; j < count; j++)
            rest[j - i] = x[j];
        *(vector *)rest = exponential(*(vector *)rest);
        for (int64_t j = i; j < count; j++)
            x[j] = rest[j - i];
    }
}

/* y = silu(gate) * up * weight. hidden: [rows, 2 width], gate before up. weight: [rows]; with `slot` weight[slot[row]].
 * y: [rows, width]. */
void octavo_swiglu(const float *hidden, const float *weight, const int64_t *slot, float *y, int64_t rows, int64_t width)
{
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const float *gate = hidden + row * 2 * width, *up = gate + width, by = weight[slot ? slot[row] : row];
        float *out = y + row * width;
        for (int64_t i = 0; i < width; i++)
            out[i] = -gate[i];
        octavo_exp(out, width);
        for (int64_t i = 0; i < width; i++)
            out[i] = gate[i] / (out[i] + 1) * up[i] * by;
    }
}

static int above(float a, float b)
{
    return a > b || (isnan(a) && !isnan(b)); /* as torch sorts */
}

/* The `picks` largest logits of each group, the largest first; of equal ones the lowest first. logits: [tokens,
 * groups * members]. ids: [tokens, groups * picks]. */
void octavo_select(const float *logits, int64_t tokens, int64_t groups, int64_t members, int64_t picks, int64_t *ids)
{
    for (int64_t part = 0; part < tokens * groups; part++) {
        const float *z = logits + part * members;
        int64_t *best = ids + part * picks, count = 0;
        for (int64_t one = 0; one < members; one++) {
            if (count == picks && !above(z[one], z[best[picks - 1]]))
                continue;
            int64_t at = count < picks ? count++ : picks - 1;
            for (; at > 0 && above(z[one], z[best[at - 1]]); at--)
                best[at] = best[at - 1];
            best[at] = one;
        }
        for (int64_t at = 0; at < picks; at++)
            best[at] += part % groups * members;
    }
}

/* Rows sorted by expert, those of one expert in the order of their slots. ids: [slots] in 0 ... experts - 1. Found: the
 * slot of each row and the row of each slot [slots], and the end of each expert's rows [experts]. */
static void sort_rows(const int64_t *ids, int64_t slots, int64_t experts, int64_t *slot_of_row, int64_t *row_of_slot,
                  int32_t *ends)
{
    for (int64_t expert = 0; expert < experts; expert++)
        ends[expert] = 0;
    for (int64_t slot = 0; slot < slots; slot++)
        ends[ids[slot]]++;
    int32_t total = 0;
    for (int64_t expert = 0; expert < experts; expert++) {
        const int32_t count = ends[expert];
        ends[expert] = total;
        total += count;
    }
    for (int64_t slot = 0; slot < slots; slot++) {
        const int64_t row = ends[ids[slot]]++;
        slot_of_row[row] = slot;
        row_of_slot[slot] = row;
    }
}

/* y [tokens, hidden] = the sum over each token's experts of weight * expert(x), in the order of its slots. ids, weights:
 * [tokens, slots]. first: [experts, hidden, 2 width] and second: [experts, width, hidden], of any strides: of experts, of
 * the inner dimension and of columns. Returns 0, or 1 without memory. */
int octavo_mixture(const float *x, int64_t x_row, const int64_t *ids, const float *weights, const float *first,
                   const int64_t *first_strides, const float *second, const int64_t *second_strides, float *y,
                   int64_t tokens, int64_t slots, int64_t experts, int64_t hidden, int64_t width)
{
    const int64_t rows = tokens * slots;
    int64_t *numbers = malloc(sizeof(int64_t) * (size_t)(3 * rows + 1));
    int32_t *ends = malloc(sizeof(int32_t) * (size_t)(experts + 1));
    float *scratch = malloc(sizeof(float) * (size_t)(rows * (3 * width + hidden) + 1));
    int failed = !numbers || !ends || !scratch;
    if (!failed) {
        int64_t *slot_of_row = numbers, *row_of_slot = numbers + rows, *token = numbers + 2 * rows;
        float *into = scratch, *act = into + rows * 2 * width, *out = act + rows * width;
        sort_rows(ids, rows, experts, slot_of_row, row_of_slot, ends);
        for (int64_t row = 0; row < rows; row++)
            token[row] = slot_of_row[row] / slots;
        const int64_t *f = first_strides, *s = second_strides;
        failed = octavo_experts(x, x_row, token, first, f[0], f[1], f[2], into, ends, experts, hidden, 2 * width);
        octavo_swiglu(into, weights, slot_of_row, act, rows, width);
        failed |= octavo_experts(act, width, 0, second, s[0], s[1], s[2], out, ends, experts, width, hidden);
        for (int64_t t = 0; t < tokens; t++) {
            float *sum = y + t * hidden;
            for (int64_t i = 0; i < hidden; i++)
                sum[i] = 0;
            for (int64_t k = 0; k < slots; k++) {
                const float *row = out + row_of_slot[t * slots + k] * hidden;
                for (int64_t i = 0; i < hidden; i++)
                    sum[i] += row[i];
            }
        }
    }
    free(numbers);
    free(ends);
    free(scratch);
    return failed;
}
