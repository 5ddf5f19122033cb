// softmax(scale q k^T) v in float32, one pass over the keys (online softmax), one query at a time.
#include <cmath>
#include <cstdint>
#include <vector>

// q, k, v and out are (batch, heads, tokens, head_dim) with unit stride in head_dim; the other strides are given in
// elements: batch, head and token of q, then of k, of v and of out.
extern "C" void attention_float32(const float* q, const float* k, const float* v, float* out, int64_t batch,
                                  int64_t heads, int64_t queries, int64_t keys, int64_t head_dim,
                                  const int64_t* strides, float scale) {
    const int64_t *qs = strides, *ks = strides + 3, *vs = strides + 6, *os = strides + 9;
#pragma omp parallel for collapse(3) schedule(static)
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t a = 0; a < heads; ++a)
            for (int64_t n = 0; n < queries; ++n) {
                const float* query = q + b * qs[0] + a * qs[1] + n * qs[2];
                float* mix_out = out + b * os[0] + a * os[1] + n * os[2];
                std::vector<float> mix(head_dim, 0.0f);  // sum of exp(logit - largest) * value
                float largest = -INFINITY, weight = 0.0f;
                for (int64_t m = 0; m < keys; ++m) {
                    const float* key = k + b * ks[0] + a * ks[1] + m * ks[2];
                    const float* value = v + b * vs[0] + a * vs[1] + m * vs[2];
                    float logit = 0.0f;
#pragma omp simd reduction(+ : logit)
                    for (int64_t i = 0; i < head_dim; ++i) logit += query[i] * key[i];
                    logit *= scale;
                    // A larger logit than any before shrinks what was added up so far. (nan is larger: it must show.)
                    if (!(logit <= largest)) {
                        const float shrink = std::exp(largest - logit);
                        weight *= shrink;
#pragma omp simd
                        for (int64_t i = 0; i < head_dim; ++i) mix[i] *= shrink;
                        largest = logit;
                    }
                    const float prob = std::exp(logit - largest);
                    weight += prob;
#pragma omp simd
                    for (int64_t i = 0; i < head_dim; ++i) mix[i] += prob * value[i];
                }
                for (int64_t i = 0; i < head_dim; ++i) mix_out[i] = mix[i] / weight;
            }
}
