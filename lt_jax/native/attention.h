// Attention of a few new queries per row over the cache, in place: no slice of a layer is taken, no mask is repeated for the
// heads, and the cost follows each row's own bound instead of the capacity.
//
// Queries that share a kv head go together in tiles. Sixteen keys at a time are transposed, so that one multiply-add
// serves sixteen scores; softmax runs along in blocks of 64 slots (Milakov & Gimelshein 2018). A row's slots are a stream
// too short for the processor to run ahead of, so each line of a block asks for the same line of the next one.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "matmul.h"
#include "pool.h"
#include "vector.h"

namespace lt {

constexpr int kSlots = 64;
constexpr int kQueries = 8;
constexpr int kMostHeadSize = 256;
constexpr float kNone = -1e30f;

// Axes: R rows of queries, T tokens, H heads, Hkv kv heads, Kb 1 or Hkv, C slots, D head size (a multiple of 16).
struct AttentionArguments {
  const float* fresh;                   // [R, T, H + 2 Hkv, D]: queries, keys, values, as they leave the projection
  const float *cosine, *sine;           // [R, T, D / 2], angles of the rotary embedding; nullptr: not rotated
  const float *query_norm, *key_norm;   // [D], weights of the RMS norm of each head; nullptr: not normed
  float eps;                            // of the norm
  const uint8_t* mask;                  // [R, Kb, T, C]
  const int32_t *rows, *start, *bound;  // [R]: cache row, slot of the first new key, first slot that no query sees
  float* out;                           // [R, T, H, D]
  float* received;                      // [R, Hkv, C], attention that each slot receives in all; nullptr: not wanted
  int64_t R, T, H, Hkv, Kb, C, D;
};

#if defined(__clang__)
#define LT_PAIRS(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LT_PAIRS(a, b, ...) __builtin_shuffle(a, b, VI{__VA_ARGS__})
#endif

// to[d][key] = from[key][d] for a 16 x 16 block.
template <typename K>
inline void transpose(const K* from, int64_t stride, float* to) {
  V a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = load(from + i * stride);
  for (int i = 0; i < 8; ++i) {  // four rounds of perfect shuffles
    b[2 * i] = LT_PAIRS(a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    b[2 * i + 1] = LT_PAIRS(a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
  for (int i = 0; i < 8; ++i) {
    a[2 * i] = LT_PAIRS(b[i], b[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    a[2 * i + 1] = LT_PAIRS(b[i], b[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
  for (int i = 0; i < 8; ++i) {
    b[2 * i] = LT_PAIRS(a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    b[2 * i + 1] = LT_PAIRS(a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
  for (int i = 0; i < 8; ++i) {
    store(to + 32 * i, LT_PAIRS(b[i], b[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
    store(to + 32 * i + 16, LT_PAIRS(b[i], b[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
  }
}

#undef LT_PAIRS

inline VI mask16(const uint8_t* from) {
  typedef uint8_t VB __attribute__((vector_size(16)));
  return __builtin_convertvector(load_as<VB>(from), VI) != 0;
}

// Q queries of one kv head over its slots [0, n).
template <int Q>
struct Tile {
  alignas(64) float q[Q][kMostHeadSize];
  alignas(64) float out[Q][kMostHeadSize];
  alignas(64) float p[Q][kSlots];
  alignas(64) float turned[kMostHeadSize * kLanes];
  const uint8_t* mask[Q];
  float top[Q], total[Q], fade[Q];

  // Scores of up to 64 slots into p, kNone where hidden; false where all are. Meanwhile `ahead` is fetched.
  template <typename K>
  bool scores(const K* k, int64_t D, int64_t at, int count, const K* ahead) {
    bool any = false;
    for (int s = 0; s < kSlots; s += kLanes) {
      const int here = std::min(kLanes, count - s);
      V score[Q];
      for (int i = 0; i < Q; ++i) score[i] = splat(kNone);
      VI seen[Q] = {};
      bool some = false;
      if (here > 0) {
        alignas(16) uint8_t bytes[kLanes];
        for (int i = 0; i < Q; ++i) {
          if (i > 0 && mask[i] == mask[i - 1]) {
            seen[i] = seen[i - 1];
            continue;
          }
          if (here == kLanes) {
            std::memcpy(bytes, mask[i] + at + s, kLanes);
          } else {
            std::memset(bytes, 0, sizeof(bytes));
            std::memcpy(bytes, mask[i] + at + s, here);
          }
          uint64_t halves[2];
          std::memcpy(halves, bytes, sizeof(bytes));
          some |= (halves[0] | halves[1]) != 0;
          seen[i] = mask16(bytes);
        }
      }
      if (some) {
        any = true;
        const K* keys = k + (at + s) * D;
        alignas(64) K edge[kLanes * kMostHeadSize];
        if (here < kLanes) {
          std::memset(edge, 0, sizeof(K) * kLanes * D);
          std::memcpy(edge, keys, sizeof(K) * here * D);
          keys = edge;
        }
        for (int64_t d = 0; d < D; d += kLanes) transpose(keys + d, D, turned + d * kLanes);
        V sum[Q] = {};
        for (int64_t d = 0; d < D; ++d) {
          const V line = load(turned + d * kLanes);
          __builtin_prefetch(ahead + s * D + d * kLanes);
#pragma GCC unroll 8
          for (int i = 0; i < Q; ++i) sum[i] += line * q[i][d];
        }
        for (int i = 0; i < Q; ++i) score[i] = choose(seen[i], sum[i], score[i]);
      }
      for (int i = 0; i < Q; ++i) store(p[i] + s, score[i]);
    }
    return any;
  }

  void soften() {
    for (int i = 0; i < Q; ++i) {
      V best = load(p[i]);
      for (int s = kLanes; s < kSlots; s += kLanes) {
        const V more = load(p[i] + s);
        best = choose(more > best, more, best);
      }
      const float now = std::max(top[i], largest(best));
      V sums = {};
      for (int s = 0; s < kSlots; s += kLanes) {
        const V score = load(p[i] + s);
        const V weight = choose(score > splat(0.5f * kNone), exp_nonpositive(score - now), V{});
        store(p[i] + s, weight);
        sums += weight;
      }
      fade[i] = exp_nonpositive(splat(top[i] - now))[0];
      total[i] = total[i] * fade[i] + sum(sums);
      top[i] = now;
    }
  }

  template <typename K>
  void gather(const K* v, int64_t D, int count, const K* ahead) {
    int64_t d = 0;
    for (; d + 2 * kLanes <= D; d += 2 * kLanes) columns<2>(v + d, D, count, d, ahead + d);
    if (d < D) columns<1>(v + d, D, count, d, ahead + d);
  }

  template <int N, typename K>
  inline void columns(const K* v, int64_t D, int count, int64_t d, const K* ahead) {
    V sum[Q][N];
    for (int i = 0; i < Q; ++i)
      for (int n = 0; n < N; ++n) sum[i][n] = load(out[i] + d + n * kLanes) * fade[i];
    for (int s = 0; s < count; ++s) {
      V value[N];
      for (int n = 0; n < N; ++n) {
        value[n] = load(v + s * D + n * kLanes);
        __builtin_prefetch(ahead + s * D + n * kLanes);
      }
#pragma GCC unroll 8
      for (int i = 0; i < Q; ++i)
        for (int n = 0; n < N; ++n) sum[i][n] += value[n] * p[i][s];
    }
    for (int i = 0; i < Q; ++i)
      for (int n = 0; n < N; ++n) store(out[i] + d + n * kLanes, sum[i][n]);
  }
};

inline int64_t kept_width(int64_t slots) { return (slots + kSlots - 1) / kSlots * kSlots; }

// Queries first, first + 1, ... of the T * G that share a kv head, counted token by token. next_k, next_v: what is read
// after this head's last block. kept: room for Q times kept_width(C) scores, where `received` is wanted.
template <int Q, typename K>
void attend_tile(const AttentionArguments& a, const float* q, const K* k, const K* v, int64_t r, int64_t h,
                 int64_t first, const K* next_k, const K* next_v, float* kept) {
  const int64_t G = a.H / a.Hkv, n = std::clamp<int64_t>(a.bound[r], 0, a.C);
  Tile<Q> tile;
  float* out[Q];
  for (int i = 0; i < Q; ++i) {
    const int64_t t = (first + i) / G, at = ((r * a.T + t) * a.H + h * G + (first + i) % G) * a.D;
    std::copy_n(q + at, a.D, tile.q[i]);
    std::fill_n(tile.out[i], a.D, 0.0f);
    out[i] = a.out + at;
    tile.mask[i] = a.mask + ((r * a.Kb + (a.Kb == 1 ? 0 : h)) * a.T + t) * a.C;
    tile.top[i] = kNone;
    tile.total[i] = 0;
  }
  for (int64_t at = 0; at < n; at += kSlots) {
    const int count = static_cast<int>(std::min<int64_t>(kSlots, n - at));
    const int64_t ahead = (at + kSlots) * a.D;
    const bool last = at + kSlots >= n;
    const bool any = tile.scores(k, a.D, at, count, last ? next_k : k + ahead);
    for (int i = 0; kept != nullptr && i < Q; ++i) std::copy_n(tile.p[i], kSlots, kept + i * kept_width(a.C) + at);
    if (!any) continue;
    tile.soften();
    tile.gather(v + at * a.D, a.D, count, last ? next_v : v + ahead);
  }
  for (int i = 0; i < Q; ++i) {
    const float whole = tile.total[i] > 0 ? 1 / tile.total[i] : 0;
    for (int64_t d = 0; d < a.D; ++d) out[i][d] = tile.out[i][d] * whole;
    if (kept == nullptr || tile.total[i] <= 0) continue;
    float* received = a.received + (r * a.Hkv + h) * a.C;
    for (int64_t s = 0; s < n; s += kLanes) {
      const V score = load(kept + i * kept_width(a.C) + s);
      const V weight = choose(score > splat(0.5f * kNone), exp_nonpositive(score - tile.top[i]), V{}) * whole;
      for (int64_t lane = 0; lane < std::min<int64_t>(kLanes, n - s); ++lane) received[s + lane] += weight[lane];
    }
  }
}

template <typename K, int Q = kQueries>
void attend_some(int queries, const AttentionArguments& a, const float* q, const K* k, const K* v, int64_t r, int64_t h,
                 int64_t first, const K* next_k, const K* next_v, float* kept) {
  if (queries == Q) {
    attend_tile<Q>(a, q, k, v, r, h, first, next_k, next_v, kept);
  } else if constexpr (Q > 1) {
    attend_some<K, Q - 1>(queries, a, q, k, v, r, h, first, next_k, next_v, kept);
  }
}

inline void copy_values(const float* from, int64_t n, float* to) { std::copy_n(from, n, to); }
inline void copy_values(const float* from, int64_t n, bf16* to) {  // round to nearest even
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = load_as<uint32_t>(from + i);
    to[i].bits = from[i] != from[i] ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
}

// One head of a query or key: normed, rotated (pairs i and i + D/2), scaled.
inline void ready(const AttentionArguments& a, const float* from, const float* norm, int64_t token, float scale,
                  float* to) {
  if (norm != nullptr) {
    norm_row(from, norm, a.eps, a.D, to);
    from = to;
  }
  const int64_t half = a.D / 2;
  if (a.cosine == nullptr) {
    for (int64_t d = 0; d < a.D; ++d) to[d] = from[d] * scale;
    return;
  }
  const float *cosine = a.cosine + token * half, *sine = a.sine + token * half;
  for (int64_t d = 0; d < half; ++d) {
    const float x = from[d], y = from[d + half];
    to[d] = (x * cosine[d] - y * sine[d]) * scale;
    to[d + half] = (y * cosine[d] + x * sine[d]) * scale;
  }
}

// The new keys and values into their slots of one layer [B, Hkv, C, D], the queries, ready to use, into q [R, T, H, D].
template <typename K>
void append(const AttentionArguments& a, float* q, K* keys, K* values) {
  const int64_t heads = a.H + 2 * a.Hkv, each = std::max<int64_t>(1, 16384 / (heads * a.D));
  const float scale = 1 / std::sqrt(static_cast<float>(a.D));
  parallel_for((a.R * a.T + each - 1) / each, a.R * a.T * heads * a.D / 2e3, [&](int64_t item) noexcept {
    for (int64_t token = item * each; token < std::min(a.R * a.T, (item + 1) * each); ++token) {
      const int64_t r = token / a.T, slot = a.start[r] + token % a.T;
      const float* from = a.fresh + token * heads * a.D;
      for (int64_t h = 0; h < a.H; ++h, from += a.D)
        ready(a, from, a.query_norm, token, scale, q + (token * a.H + h) * a.D);
      alignas(64) float key[kMostHeadSize];
      for (int64_t h = 0; h < a.Hkv; ++h, from += a.D) {
        const int64_t at = ((a.rows[r] * a.Hkv + h) * a.C + slot) * a.D;
        ready(a, from, a.key_norm, token, 1, key);
        copy_values(key, a.D, keys + at);
        copy_values(from + a.Hkv * a.D, a.D, values + at);
      }
    }
  });
}

// keys, values: [B, Hkv, C, D], one layer of the cache.
template <typename K>
void attention(const AttentionArguments& a, K* keys, K* values) {
  static thread_local std::vector<float> room;
  if (static_cast<int64_t>(room.size()) < a.R * a.T * a.H * a.D) room.resize(a.R * a.T * a.H * a.D);
  float* q = room.data();
  append(a, q, keys, values);
  const int64_t queries = a.T * (a.H / a.Hkv), tiles = (queries + kQueries - 1) / kQueries;
  int64_t slots = 0;
  for (int64_t r = 0; r < a.R; ++r) slots += a.bound[r];
  static thread_local std::vector<float> scores;
  const int64_t width = kQueries * kept_width(a.C);
  if (a.received != nullptr) {
    std::fill_n(a.received, a.R * a.Hkv * a.C, 0.0f);
    if (static_cast<int64_t>(scores.size()) < width * Pool::get().threads()) scores.resize(width * Pool::get().threads());
  }
  float* kept = a.received == nullptr ? nullptr : scores.data();
  // Several heads in a row for one thread, which then knows what it reads next; all tiles of a head, where they add up.
  const int64_t items = a.R * a.Hkv * tiles, some = std::max<int64_t>(1, items / (8 * Pool::get().threads()));
  const int64_t each = kept == nullptr ? some : (some + tiles - 1) / tiles * tiles;
  parallel_for((items + each - 1) / each, slots * a.T * a.H * a.D / 1e4, [&](int64_t group) noexcept {
    const int64_t end = std::min(items, (group + 1) * each);
    const auto base = [&](int64_t item) {
      return (a.rows[item / tiles / a.Hkv] * a.Hkv + item / tiles % a.Hkv) * a.C * a.D;
    };
    for (int64_t item = group * each; item < end; ++item) {
      const int64_t tile = item % tiles, h = item / tiles % a.Hkv, r = item / tiles / a.Hkv;
      const int64_t first = queries * tile / tiles, last = queries * (tile + 1) / tiles;
      const int64_t here = base(item), next = base(std::min(item + 1, end - 1));
      attend_some<K>(static_cast<int>(last - first), a, q, keys + here, values + here, r, h, first, keys + next,
                     values + next, kept == nullptr ? nullptr : kept + width * Pool::thread());
    }
  });
}

}  // namespace lt
