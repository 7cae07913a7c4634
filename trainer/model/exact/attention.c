/* Causal attention in fp32, each query by itself: its bits depend on the query and on the keys and values that it sees.
 */

#include <stdlib.h>
#include <string.h>

#include "vectors.h"

typedef float quarter __attribute__((vector_size(16), aligned(4)));

static float dot(const float *a, const float *b, int64_t count)
{
    vector sums = {0};
    int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH)
        sums += *(const vector *)(a + i) * *(const vector *)(b + i);
    float parts[WIDTH];
    *(vector *)parts = sums;
    quarter four = *(quarter *)parts;
    for (int j = 4; j < WIDTH; j += 4)
        four += *(quarter *)(parts + j);
    float sum = (four[0] + four[2]) + (four[1] + four[3]);
    for (; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

/* Copy a step's keys and values to their places in a cache. k, v: [tokens, heads, width], tokens k_row and v_row numbers
 * apart. place: [tokens * heads], of each row of `width` numbers in `keys` and in `values`. */
void octavo_store(const float *k, int64_t k_row, const float *v, int64_t v_row, const int64_t *place, float *keys,
                  float *values, int64_t tokens, int64_t heads, int64_t width)
{
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t head = 0; head < heads; head++) {
            const int64_t at = place[t * heads + head] * width;
            memcpy(keys + at, k + t * k_row + head * width, sizeof(float) * (size_t)width);
            memcpy(values + at, v + t * v_row + head * width, sizeof(float) * (size_t)width);
        }
}

/* q, y: [tokens, heads * shared, width]. The keys that a token sees are the first seen[token] of the pages from
 * pages[table[token]] on, which name the places of their first numbers in `keys` and in `values`. A page has `page` keys,
 * those of one head `key_stride` numbers apart, heads `head_stride`. Returns 0, or 1 without memory. */
int octavo_attend(const float *q, const float *keys, const float *values, const int64_t *pages, const int64_t *table,
                  const int64_t *seen, float *y, int64_t tokens, int64_t heads, int64_t shared, int64_t width,
                  int64_t page, int64_t head_stride, int64_t key_stride)
{
    int64_t most = 0, all = 0;
    for (int64_t t = 0; t < tokens; t++) {
        most = seen[t] > most ? seen[t] : most;
        all += seen[t];
    }
    const float scale = 1 / sqrtf((float)width);
    int failed = 0;
#pragma omp parallel if (all * heads * shared * width > SMALL)
    {
        float *scores = malloc(sizeof(float) * (size_t)(most + WIDTH + width));
        if (!scores)
#pragma omp atomic write
            failed = 1;
#pragma omp for collapse(2) schedule(dynamic, 16)
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t head = 0; head < heads; head++)
                for (int64_t r = 0; scores && r < shared; r++) {
                    const int64_t at = ((t * heads + head) * shared + r) * width, count = seen[t];
                    const int64_t *of_token = pages + table[t];
                    float *scaled = scores + most + WIDTH, top = -INFINITY;
                    for (int64_t i = 0; i < width; i++)
                        scaled[i] = q[at + i] * scale;
                    for (int64_t first = 0, p = 0; first < count; first += page, p++) {
                        const float *key = keys + of_token[p] + head * head_stride;
                        const int64_t end = count - first < page ? count : first + page;
                        for (int64_t k = first; k < end; k++, key += key_stride) {
                            scores[k] = dot(scaled, key, width);
                            top = scores[k] > top || isnan(scores[k]) ? scores[k] : top;
                        }
                    }
                    for (int64_t k = 0; k < count; k++)
                        scores[k] -= top;
                    for (int64_t k = count; k < count + WIDTH; k++)
                        scores[k] = -INFINITY;
                    octavo_exp(scores, count + WIDTH);
                    vector sums = {0};
                    for (int64_t k = 0; k < count; k += WIDTH)
                        sums += *(const vector *)(scores + k);
                    float total = 0;
                    for (int j = 0; j < WIDTH; j++)
                        total += sums[j];
                    int64_t i = 0;
                    for (; i + PANEL <= width; i += PANEL) {
                        vector sum[VECTORS] = {0};
                        for (int64_t first = 0, p = 0; first < count; first += page, p++) {
                            const float *value = values + of_token[p] + head * head_stride + i;
                            const int64_t end = count - first < page ? count : first + page;
                            for (int64_t k = first; k < end; k++, value += key_stride)
                                for (int v = 0; v < VECTORS; v++)
                                    sum[v] += scores[k] * *(const vector *)(value + v * WIDTH);
                        }
                        for (int v = 0; v < VECTORS; v++)
                            *(vector *)(y + at + i + v * WIDTH) = sum[v] / total;
                    }
                    for (; i < width; i++) {
                        float sum = 0;
                        for (int64_t k = 0; k < count; k++)
                            sum += scores[k] * values[of_token[k / page] + head * head_stride + k % page * key_stride + i];
                        y[at + i] = sum / total;
                    }
                }
        free(scores);
    }
    return failed;
}
