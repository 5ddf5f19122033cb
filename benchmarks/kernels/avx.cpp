// softmax(scale q k^T) v on x86 CPUs, forward: AVX-512 (with its bfloat16 products where there are any) or AVX2.
//
// Both matrix products are the same small product, multiply() below: a block of ROWS queries times a panel of two
// vectors of keys (or of columns of v), whose sums stay in registers from the first to the last term. What it reads
// is laid out for it beforehand, so that it meets every number in the order in which it lies in memory:
//
//   A, the left factor:  [depth / LANES][row][LANES]        q of a block of queries, later its probabilities
//   B, the right factor: panels of [depth][2 * LANES]       k^T (depth: head_dim) and v (depth: keys) of a head
//
// A thread lays out k and v of a head once and then goes through its blocks of queries. Keys are taken in blocks of at
// most KEYS with an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao 2023, arXiv:2307.08691,
// algorithm 1), so that the probabilities of a block of queries never leave the L1 cache.
//
// A "word" is 32 bits: one float, or two neighbours of bfloat16 along the depth, which vdpbf16ps multiplies and adds to
// a sum in float32, with denormals taken for zero. Without that instruction half precision is widened to float where it
// is laid out.

#include <ATen/Parallel.h>
#include <immintrin.h>
#include <torch/extension.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

using Word = uint32_t;
using Byte = unsigned char;

// --- the vectors: everything that AVX-512 and AVX2 say differently

#ifdef __AVX512F__
using Vec = __m512;
constexpr int LANES = 16;
constexpr int ROWS = 12;  // 12 x 2 sums, 2 vectors of B and 1 of A: 27 of the 32 registers

inline Vec all(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* x) { return _mm512_loadu_ps(x); }
inline Vec load(const at::Half* x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x)); }
inline Vec load(const at::BFloat16* x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}
inline void store(float* to, Vec x) { _mm512_storeu_ps(to, x); }
inline void store(at::Half* to, Vec x) {
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec times(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline float largest_of(Vec x) { return _mm512_reduce_max_ps(x); }
inline float sum_of(Vec x) { return _mm512_reduce_add_ps(x); }
inline Vec rounded(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power_of_two(Vec x, Vec exponent) { return _mm512_scalef_ps(x, exponent); }
// x in the first `count` lanes, -inf in the others.
inline Vec only(Vec x, int count) { return _mm512_mask_mov_ps(all(-INFINITY), (1u << count) - 1, x); }
#else
using Vec = __m256;
constexpr int LANES = 8;
constexpr int ROWS = 6;  // 6 x 2 sums, 2 vectors of B and 1 of A: 15 of the 16 registers

inline Vec all(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* x) { return _mm256_loadu_ps(x); }
inline Vec load(const at::Half* x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)x)); }
inline Vec load(const at::BFloat16* x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x)), 16));
}
inline void store(float* to, Vec x) { _mm256_storeu_ps(to, x); }
inline void store(at::Half* to, Vec x) {
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec times(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline float largest_of(Vec x) {
  alignas(32) float lanes[LANES];
  _mm256_store_ps(lanes, x);
  return *std::max_element(lanes, lanes + LANES);
}
inline float sum_of(Vec x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline Vec rounded(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// The exponent is added where it stands, in bits 23 to 30. Below 2^-126 there is nothing but 0: no denormals.
inline Vec times_power_of_two(Vec x, Vec exponent) {
  const Vec small = _mm256_cmp_ps(exponent, all(-126), _CMP_LT_OQ);
  const __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(exponent), 23);
  return _mm256_andnot_ps(small, _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shifted)));
}
inline Vec only(Vec x, int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_blendv_ps(all(-INFINITY), x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane)));
}
#endif

inline void store(at::BFloat16* to, Vec x) {
#ifdef __AVX512BF16__
  const __m256bh half = _mm512_cvtneps_pbh(x);
  std::memcpy(to, &half, sizeof half);
#else
  alignas(64) float lanes[LANES];
  store(lanes, x);
  for (int i = 0; i < LANES; ++i) to[i] = lanes[i];
#endif
}

// --- the two kinds of words

struct Floats {
  static constexpr int PER_WORD = 1;
  // 2^x for |x| <= 1/2: 1.1e-7 off at most, about the rounding of the result. (Minimax with exp2(0) = 1.)
  static constexpr float EXP2[] = {1.0f, 0.693147004f, 0.240222424f, 0.0555073358f, 0.00967151299f, 0.00132647273f};
  static Vec multiply_add(Word a, Vec b, Vec sum) {
    float x;
    std::memcpy(&x, &a, sizeof x);
    return ::multiply_add(all(x), b, sum);
  }
};

#ifdef __AVX512BF16__
struct Pairs {
  static constexpr int PER_WORD = 2;
  // 1.0e-4 off at most: the probability is rounded to 8 bits, by up to 2e-3, a moment later.
  static constexpr float EXP2[] = {1.0f, 0.693282902f, 0.242210954f, 0.0550089329f};
  static Vec multiply_add(Word a, Vec b, Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
  }
  // Two vectors of floats, rounded, as one of pairs.
  static Vec round(Vec low, Vec high) { return (Vec)_mm512_cvtne2ps_pbh(high, low); }
  static Vec add_both(Vec pairs, Vec sum) { return multiply_add(0x3f803f80, pairs, sum); }  // times 1, twice
  // Number by number, two rows that were widened from bfloat16: its bits, then 16 zeros.
  static Vec zip(Vec low, Vec high) {
    return (Vec)_mm512_or_si512((__m512i)high, _mm512_srli_epi32((__m512i)low, 16));
  }
};
#endif

template <class T>
struct WordsOf {
  using type = Floats;
};
#ifdef __AVX512BF16__
template <>
struct WordsOf<at::BFloat16> {
  using type = Pairs;
};
#endif

// 2^x for x <= 0, -inf and nan included: max returns its second operand where one is nan.
template <class Words>
inline Vec exp2(Vec x) {
  x = larger(all(-200), x);
  const Vec whole = rounded(x);
  const Vec part = subtract(x, whole);
  constexpr int degree = sizeof(Words::EXP2) / sizeof(float) - 1;
  Vec sum = all(Words::EXP2[degree]);
  for (int i = degree - 1; i >= 0; --i) sum = multiply_add(sum, part, all(Words::EXP2[i]));
  return times_power_of_two(sum, whole);
}

// --- the product

constexpr int64_t KEYS = 256;  // of a block, at most: 12 x 256 probabilities and a panel of keys share an L1 of 32 KB

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// sums += A B for R rows of A, C vectors of a panel of B and `depth` words of both.
template <class Words, int R, int C>
inline void multiply(const Word* a, const Word* b, int64_t depth, Vec (&sums)[C][R]) {
  for (; depth > 0; depth -= LANES, a += R * LANES) {
    const int64_t words = std::min<int64_t>(depth, LANES);
    for (int64_t i = 0; i < words; ++i, b += C * LANES) {
      Vec columns[C];
      for (int c = 0; c < C; ++c) columns[c] = load((const float*)b + c * LANES);
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) sums[c][r] = Words::multiply_add(a[r * LANES + i], columns[c], sums[c][r]);
    }
  }
}

// --- the layout

struct alignas(64) Line {
  Word words[16];
};

// B: `depth` words times `vectors` vectors in panels of two vectors, the last one of one where they are odd. What is
// never written, beyond the last key and the last column, stays zero.
struct Panels {
  int64_t depth, vectors;
  std::vector<Line> lines;

  Panels(int64_t depth, int64_t vectors)
      : depth(depth), vectors(vectors), lines(divide_up(depth * vectors * LANES, 16)) {}
  int width(int64_t vector) const { return vectors - vector / 2 * 2 >= 2 ? 2 : 1; }
  Word* at(int64_t row, int64_t vector) {
    const int64_t first = vector / 2 * 2;
    return lines.data()->words + (first * depth + row * width(vector) + vector % 2) * LANES;
  }
};

// Rows of `size` numbers that may be read in whole vectors of words: where they lie, or a copy with zeros behind it.
template <class T>
struct Rows {
  int64_t size;
  std::vector<T> copy, zeros;

  explicit Rows(int64_t size) : size(size), copy(divide_up(size, 32) * 32, T(0)), zeros(copy) {}
  const T* read(const T* row) {
    if (size % 32 == 0) return row;
    std::memcpy(copy.data(), row, size * sizeof(T));
    return copy.data();
  }
};

// The words of one vector of a row.
template <class Words, class T>
inline Vec words_of(const T* row, int64_t vector) {
  if constexpr (Words::PER_WORD == 2) return load((const float*)(row + vector * LANES * 2));
  else return load(row + vector * LANES);
}

// Rows of a tensor, `stride` elements apart.
template <class T>
struct Block {
  const T* from = nullptr;
  int64_t stride = 0, rows = 0;
};

// Rows that will be wanted soon: each of their cache lines is loaded and thrown away, many at once. They are 9 KB apart
// in the qkv of a ViT-B, so that no prefetcher sees them coming, and the instructions for prefetching helped less on
// Zen 4, as did fewer loads at a time, between the products.
template <class T>
inline void touch(const Block<T>& block, int64_t size) {
  for (int64_t r = 0; r < block.rows; ++r)
    for (int64_t i = 0; i < size; i += 64 / sizeof(T)) (void)*(const volatile Byte*)(block.from + r * block.stride + i);
}

struct Strides {
  int64_t batch, head, token;  // in elements; those of a head lie one after the other
  explicit Strides(const at::Tensor& x) : batch(x.stride(0)), head(x.stride(1)), token(x.stride(2)) {}
  int64_t at(int64_t b, int64_t a, int64_t n) const { return b * batch + a * head + n * token; }
};

// One thread's view of the problem, and all the memory it works in.
template <class T>
struct Worker {
  using Words = typename WordsOf<T>::type;
  static constexpr int PER_WORD = Words::PER_WORD;

  int64_t keys, head_dim;
  float scale;  // times log2(e), for exp2
  Panels k, v;  // of the present head
  Rows<T> rows, next_rows;
  std::vector<Line> queries, logits, mix;  // of the present block of queries, as [vector][row][LANES]

  Worker(int64_t keys, int64_t head_dim, double scale)
      : keys(keys),
        head_dim(head_dim),
        scale(scale * M_LOG2E),
        k(divide_up(head_dim, PER_WORD), divide_up(keys, LANES)),
        v(divide_up(keys, PER_WORD), divide_up(head_dim, LANES)),
        rows(head_dim),
        next_rows(head_dim),
        queries(divide_up(k.depth, LANES) * ROWS),
        logits(KEYS / LANES * ROWS),
        mix(v.vectors * ROWS) {}

  // Four keys at a time: their words in rows, then 4 x 4 of them at a time turned over.
  void lay_out_keys(const T* from, int64_t stride) {
    const int64_t vectors = divide_up(k.depth, LANES);
    std::vector<Line> four(4 * vectors);
    float* words = (float*)four.data();
    for (int64_t m = 0; m < keys; m += 4) {
      for (int i = 0; i < 4; ++i) {
        const T* key = m + i < keys ? rows.read(from + (m + i) * stride) : rows.zeros.data();
        for (int64_t t = 0; t < vectors; ++t) store(words + (i * vectors + t) * LANES, words_of<Words>(key, t));
      }
      Word* to = k.at(0, m / LANES) + m % LANES;
      const int64_t step = k.width(m / LANES) * LANES;
      for (int64_t t = 0; t < k.depth; t += 4) {
        __m128 x[4];
        for (int i = 0; i < 4; ++i) x[i] = _mm_loadu_ps(words + i * vectors * LANES + t);
        _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]);
        for (int i = 0; i < 4 && t + i < k.depth; ++i) _mm_storeu_ps((float*)to + (t + i) * step, x[i]);
      }
    }
  }

  // Rows as they are, or pairs of rows, number by number.
  void lay_out_values(const T* from, int64_t stride) {
    for (int64_t m = 0; m < keys; m += PER_WORD) {
      const T* value = rows.read(from + m * stride);
      if constexpr (PER_WORD == 1) {
        for (int64_t t = 0; t < v.vectors; ++t) store((float*)v.at(m, t), load(value + t * LANES));
      } else {
        const T* after = m + 1 < keys ? next_rows.read(from + (m + 1) * stride) : rows.zeros.data();
        for (int64_t t = 0; t < v.vectors; ++t)
          store((float*)v.at(m / 2, t), Words::zip(load(value + t * LANES), load(after + t * LANES)));
      }
    }
  }

  // The largest logit so far of each row, the probabilities relative to it in the place of the logits, their sum.
  template <int R>
  void softmax(int64_t vectors, float (&largest)[R], float (&weight)[R], float (&shrink)[R]) {
    float* const block = (float*)logits.data();
    for (int r = 0; r < R; ++r) {
      Vec most = load(block + r * LANES);
      for (int64_t t = 1; t < vectors; ++t) most = larger(most, load(block + (t * R + r) * LANES));
      const float now = std::max(largest[r], scale * largest_of(most));
      shrink[r] = largest[r] == -INFINITY ? 0 : std::exp2(largest[r] - now);
      largest[r] = now;
    }
    for (int r = 0; r < R; ++r) {
      // A row of nothing but -inf so far has no weight: not exp(-inf + inf), which is nan.
      const Vec base = all(largest[r] == -INFINITY ? 0 : -largest[r]);
      const auto probs = [&](int64_t t) {
        return exp2<Words>(multiply_add(load(block + (t * R + r) * LANES), all(scale), base));
      };
      Vec sum = all(0);
      if constexpr (PER_WORD == 1) {
        for (int64_t t = 0; t < vectors; ++t) {
          const Vec x = probs(t);
          sum = add(sum, x);
          store(block + (t * R + r) * LANES, x);
        }
      } else {
        for (int64_t t = 0; t < vectors; t += 2) {
          const Vec x = Words::round(probs(t), t + 1 < vectors ? probs(t + 1) : all(0));
          sum = Words::add_both(x, sum);  // what is divided by is the sum of what is multiplied with
          store(block + (t / 2 * R + r) * LANES, x);
        }
      }
      weight[r] = weight[r] * shrink[r] + sum_of(sum);
    }
  }

  template <int R, int C>
  void logits_of(int64_t vector, int64_t to) {
    Vec sums[C][R];
    for (auto& column : sums)
      for (Vec& sum : column) sum = all(0);
    multiply<Words, R, C>(queries.data()->words, k.at(0, vector), k.depth, sums);
    float* at = (float*)logits.data() + to * R * LANES;
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) store(at + (c * R + r) * LANES, sums[c][r]);
  }

  template <int R, int C>
  void mix_of(int64_t vector, int64_t first_word, int64_t depth, const float (&shrink)[R]) {
    Vec sums[C][R];
    float* at = (float*)mix.data() + vector * R * LANES;
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) sums[c][r] = times(load(at + (c * R + r) * LANES), all(shrink[r]));
    multiply<Words, R, C>(logits.data()->words, v.at(first_word, vector), depth, sums);
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) store(at + (c * R + r) * LANES, sums[c][r]);
  }

  // R queries, one after the other at `stride`.
  template <int R>
  void attend(const T* q, int64_t q_stride, T* out, int64_t out_stride) {
    for (int r = 0; r < R; ++r) {
      const T* query = rows.read(q + r * q_stride);
      for (int64_t t = 0; t < divide_up(k.depth, LANES); ++t)
        store((float*)queries.data() + (t * R + r) * LANES, words_of<Words>(query, t));
    }
    std::fill(mix.begin(), mix.end(), Line{});
    float largest[R], weight[R] = {}, shrink[R];
    std::fill(largest, largest + R, -INFINITY);

    const int64_t blocks = divide_up(keys, KEYS);
    const int64_t block = divide_up(divide_up(keys, blocks), 2 * LANES) * 2 * LANES;  // all of about the same size
    for (int64_t start = 0; start < keys; start += block) {
      const int64_t here = std::min(block, keys - start), vectors = divide_up(here, LANES);
      for (int64_t t = 0; t < vectors; t += 2) {
        if (t + 1 < vectors) logits_of<R, 2>(start / LANES + t, t);
        else logits_of<R, 1>(start / LANES + t, t);
      }
      if (here % LANES)
        for (int r = 0; r < R; ++r) {
          float* at = (float*)logits.data() + ((vectors - 1) * R + r) * LANES;
          store(at, only(load(at), here % LANES));
        }
      softmax<R>(vectors, largest, weight, shrink);
      for (int64_t t = 0; t < v.vectors; t += 2) {
        if (v.width(t) == 2) mix_of<R, 2>(t, start / PER_WORD, divide_up(here, PER_WORD), shrink);
        else mix_of<R, 1>(t, start / PER_WORD, divide_up(here, PER_WORD), shrink);
      }
    }

    for (int r = 0; r < R; ++r) {
      T* to = out + r * out_stride;
      const Vec share = all(1 / weight[r]);
      for (int64_t t = 0; t < v.vectors; ++t) {
        const Vec x = times(load((const float*)mix.data() + (t * R + r) * LANES), share);
        const int64_t left = head_dim - t * LANES;
        if (left >= LANES) {
          store(to + t * LANES, x);
        } else {
          T last[LANES];
          store(last, x);
          std::memcpy(to + t * LANES, last, left * sizeof(T));
        }
      }
    }
  }

  // attend<rows>, for rows from 1 to ROWS.
  template <int R = ROWS>
  void attend_rows(int64_t rows, const T* q, int64_t q_stride, T* out, int64_t out_stride) {
    if (rows == R) return attend<R>(q, q_stride, out, out_stride);
    if constexpr (R > 1) attend_rows<R - 1>(rows, q, q_stride, out, out_stride);
  }
};

template <class T>
void attend_all(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale, at::Tensor& out) {
  const int64_t heads = q.size(1), queries = q.size(2), head_dim = q.size(3), keys = k.size(2);
  const int64_t all_heads = q.size(0) * heads, blocks = divide_up(queries, ROWS);
  const Strides qs(q), ks(k), vs(v), os(out);
  const T *q_at = q.const_data_ptr<T>(), *k_at = k.const_data_ptr<T>(), *v_at = v.const_data_ptr<T>();
  T* out_at = out.data_ptr<T>();
  // Block i of queries, all heads counted on, and this block's share of the keys or values of the next head.
  const auto queries_of = [=](int64_t i) {
    const int64_t head = i / blocks, first = i % blocks * ROWS, rows = std::min<int64_t>(ROWS, queries - first);
    return Block<T>{q_at + qs.at(head / heads, head % heads, first), qs.token, rows};
  };
  const auto share_of_next = [=](const T* x, const Strides& xs, int64_t i) {
    const int64_t head = i / blocks + 1, first = keys * (i % blocks) / blocks, end = keys * (i % blocks + 1) / blocks;
    if (head == all_heads) return Block<T>{};
    return Block<T>{x + xs.at(head / heads, head % heads, first), xs.token, end - first};
  };
  at::parallel_for(0, all_heads * blocks, 1, [&](int64_t begin, int64_t end) {
    Worker<T> worker(keys, head_dim, scale);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / blocks, b = head / heads, a = head % heads;
      if (i == begin || i % blocks == 0) {
        worker.lay_out_keys(k_at + ks.at(b, a, 0), ks.token);
        worker.lay_out_values(v_at + vs.at(b, a, 0), vs.token);
      }
      if (i + 1 < end) touch(queries_of(i + 1), head_dim);
      touch(share_of_next(k_at, ks, i), head_dim);
      touch(share_of_next(v_at, vs, i), head_dim);
      const Block<T> here = queries_of(i);
      worker.attend_rows(here.rows, here.from, here.stride, out_at + os.at(b, a, i % blocks * ROWS), os.token);
    }
  });
}

// q is (B, A, N, K), k and v are (B, A, M, K), of one dtype on the CPU, in any strides; so is the result, which lies in
// memory as (B, N, A, K): the model's reshape to (B, N, A * K) after attention then copies nothing.
at::Tensor attention(at::Tensor q, at::Tensor k, at::Tensor v, double scale) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes(), "q must be (B, A, N, K), k and v (B, A, M, K)");
  TORCH_CHECK(
      q.size(0) == k.size(0) && q.size(1) == k.size(1) && q.size(3) == k.size(3) && k.size(2) > 0,
      "q and k do not fit: ", q.sizes(), " and ", k.sizes());
  for (const at::Tensor* x : {&q, &k, &v})
    TORCH_CHECK(x->device().is_cpu() && x->scalar_type() == q.scalar_type(), "q, k, v: not of one dtype on the CPU");
  if (scale <= 0) {  // the largest logit, which softmax subtracts, is to be that of the largest product
    q = q * (scale < 0 ? -1 : 0);
    scale = scale < 0 ? -scale : 1;
  }
  for (at::Tensor* x : {&q, &k, &v})
    if (x->stride(3) != 1) *x = x->contiguous();
  at::Tensor out = at::empty({q.size(0), q.size(2), q.size(1), q.size(3)}, q.options()).transpose(1, 2);
  AT_DISPATCH_SWITCH(
      q.scalar_type(), "attention",
      AT_DISPATCH_CASE(at::kFloat, [&] { attend_all<float>(q, k, v, scale, out); })
      AT_DISPATCH_CASE(at::kBFloat16, [&] { attend_all<at::BFloat16>(q, k, v, scale, out); })
      AT_DISPATCH_CASE(at::kHalf, [&] { attend_all<at::Half>(q, k, v, scale, out); }));
  return out;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("attention", &attention, py::call_guard<py::gil_scoped_release>());
}
