// Attention of whole rows under lifetimes, forward and backward, over the block lists of attention/blocks.py: the same
// algorithm as attention/blocked.py (flash attention over death-sorted keys), with every tile in the first-level cache.
//
// Tiles hold keys first, [keys][queries], so that softmax runs along queries in whole vectors and nothing is reduced
// across lanes. All five products of a tile go through one register-blocked kernel, `product`.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "attention.h"
#include "pool.h"
#include "vector.h"

namespace lt {
constexpr float kHidden = -1e30f, kLowest = -1e29f;  // a hidden pair's score, and where the running maximum starts
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;  // scores are to the base 2: the queries are scaled for it
constexpr float kSlack = 8;  // by how much a score may pass the maximum that its softmax goes by

// Axes: B rows, S tokens, H heads, Hkv kv heads, D head size (a multiple of 16), R = B or B * Hkv lists of blocks,
// nq and nk blocks of bq queries (a multiple of 16) and bk keys. Pointers may be null where they say so.
struct FlashArguments {
  const float *q, *k, *v;                     // [B, S, H, D], [B, S, Hkv, D]
  const int32_t *order, *birth, *death;       // [R, nk * bk]
  const int32_t *key_gist, *query_gist;       // [R, nk * bk], [R, nq * bq], or null: rule 0
  const int32_t* since;                       // [R, nq * bq]
  const int32_t *blocks, *n_full, *n_active;  // [R, nq, nk], [R, nq]
  float* out;                                 // [B, S, H, D]
  float* lse;                                 // [B, H, S], natural logarithm
  int64_t B, S, H, Hkv, D, R, nq, nk, bq, bk;
  float scale;
  int rule;  // 0 causal, 1 bidirectional, 2 diagonal
};

struct FlashGradients {
  const float* dout;     // [B, S, H, D]
  float *dq, *dk, *dv;   // as q, k, v
};

// c[M][16 N] = start + a[M][n] b[n][16 N], where a(m, r) = a[m * sm + r * sr]. Rows of `start` lie lds apart: it is c
// itself, one row for all (lds 0), or null: zeros.
template <int M, int N>
inline void product_tile(const float* a, int64_t sm, int64_t sr, const float* b, int64_t ldb, const float* start,
                         int64_t lds, float* c, int64_t ldc, int64_t n) {
  V acc[M][N];
  for (int m = 0; m < M; ++m)
    for (int j = 0; j < N; ++j) acc[m][j] = start != nullptr ? load(start + m * lds + j * kLanes) : V{};
  for (int64_t r = 0; r < n; ++r) {
    V line[N];
    for (int j = 0; j < N; ++j) line[j] = load(b + r * ldb + j * kLanes);
    for (int m = 0; m < M; ++m) {
      const V one = splat(a[m * sm + r * sr]);
      for (int j = 0; j < N; ++j) acc[m][j] += one * line[j];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int j = 0; j < N; ++j) store(c + m * ldc + j * kLanes, acc[m][j]);
}

// Rows in tiles of M, and those that are left in lower ones.
template <int M, int N>
inline void product_rows(int64_t rows, const float* a, int64_t sm, int64_t sr, const float* b, int64_t ldb,
                         const float* start, int64_t lds, float* c, int64_t ldc, int64_t n) {
  for (; rows >= M; rows -= M, a += M * sm, c += M * ldc) {
    product_tile<M, N>(a, sm, sr, b, ldb, start, lds, c, ldc, n);
    if (start != nullptr) start += M * lds;
  }
  if constexpr (M > 1) product_rows<M / 2, N>(rows, a, sm, sr, b, ldb, start, lds, c, ldc, n);
}

inline void product(int64_t rows, int64_t columns, int64_t n, const float* a, int64_t sm, int64_t sr, const float* b,
                    int64_t ldb, const float* start, int64_t lds, float* c, int64_t ldc) {
  const auto from = [&](int64_t j) { return start != nullptr ? start + j : nullptr; };
  int64_t j = 0;
  for (; j + 64 <= columns; j += 64) product_rows<4, 4>(rows, a, sm, sr, b + j, ldb, from(j), lds, c + j, ldc, n);
  for (; j + 32 <= columns; j += 32) product_rows<8, 2>(rows, a, sm, sr, b + j, ldb, from(j), lds, c + j, ldc, n);
  for (; j + 16 <= columns; j += 16) product_rows<8, 1>(rows, a, sm, sr, b + j, ldb, from(j), lds, c + j, ldc, n);
}

// to[c][r] = from[r][c] for rows and columns that are multiples of 16.
inline void turn(const float* from, int64_t rows, int64_t columns, int64_t ldf, float* to, int64_t ldt) {
  alignas(64) float tile[256];
  for (int64_t r = 0; r < rows; r += 16)
    for (int64_t c = 0; c < columns; c += 16) {
      transpose(from + r * ldf + c, ldf, tile);
      for (int i = 0; i < 16; ++i) store(to + (c + i) * ldt + r, load(tile + 16 * i));
    }
}

// One thread's tiles of one head and query block, in memory of FlashTile::size floats that is aligned to whole vectors.
struct FlashTile {
  float *rows, *drows, *turned, *dturned, *acc, *p, *ds;  // [bq][D] twice, [D][bq] three times, [bk][bq] twice
  float *best, *top, *total;  // [bq]; backward: top is minus the logarithm of the sum, total minus delta

  static int64_t size(const FlashArguments& a) {  // every part of it is whole vectors: bq and D are
    return 5 * a.bq * a.D + 2 * a.bk * a.bq + 3 * a.bq;
  }

  FlashTile(const FlashArguments& a, float* at) {
    for (float** part : {&rows, &drows, &turned, &dturned, &acc}) *part = at, at += a.bq * a.D;
    for (float** part : {&p, &ds}) *part = at, at += a.bk * a.bq;
    for (float** part : {&best, &top, &total}) *part = at, at += a.bq;
  }
};

// Tiles for every thread of the pool, made before the loop: the loop itself must not allocate.
class FlashRoom {
 public:
  explicit FlashRoom(const FlashArguments& a)
      : a_(a), memory_(new float[Pool::get().threads() * FlashTile::size(a) + kLanes]) {}

  FlashTile own() const {
    const int64_t past = reinterpret_cast<uintptr_t>(memory_.get()) / sizeof(float) % kLanes;
    return FlashTile(a_, memory_.get() + (kLanes - past) % kLanes + Pool::thread() * FlashTile::size(a_));
  }

 private:
  const FlashArguments& a_;
  const std::unique_ptr<float[]> memory_;
};

// Queries [first, first + bq) of x [B, S, H, D] times factor, as rows [bq][D]; zeros past the end.
inline void take_rows(const FlashArguments& a, const float* x, int64_t b, int64_t h, int64_t first, float factor,
                      float* to) {
  for (int64_t t = 0; t < a.bq; ++t, to += a.D) {
    if (first + t >= a.S) {
      std::memset(to, 0, a.D * sizeof(float));
      continue;
    }
    const float* from = x + ((b * a.S + first + t) * a.H + h) * a.D;
    for (int64_t d = 0; d < a.D; d += kLanes) store(to + d, load(from + d) * factor);
  }
}

// [D][bq] back to queries of x; rows past the end are dropped.
inline void put_turned(const FlashArguments& a, const float* from, int64_t b, int64_t h, int64_t first, float* rows,
                       float* x) {
  turn(from, a.D, a.bq, a.bq, rows, a.D);
  const int64_t n = std::min(a.bq, a.S - first);
  for (int64_t t = 0; t < n; ++t)
    std::memcpy(x + ((b * a.S + first + t) * a.H + h) * a.D, rows + t * a.D, a.D * sizeof(float));
}

// Scores of the hidden pairs of key block j and query block i become kHidden: the rule of lifetimes.visible.
inline void hide(const FlashArguments& a, int64_t list, int64_t i, int64_t j, float* scores) {
  const int64_t key0 = list * a.nk * a.bk + j * a.bk, query0 = list * a.nq * a.bq + i * a.bq;
  VI lane;
  for (int n = 0; n < kLanes; ++n) lane[n] = n;
  for (int64_t c = 0; c < a.bq; c += kLanes) {
    const VI index = lane + static_cast<int32_t>(i * a.bq + c);
    const VI since = load_as<VI>(a.since + query0 + c);
    const VI gist = a.rule ? load_as<VI>(a.query_gist + query0 + c) : VI{};
    for (int64_t s = 0; s < a.bk; ++s) {
      const int32_t birth = a.birth[key0 + s], death = a.death[key0 + s];
      float* at = scores + s * a.bq + c;
      if (birth < 0) {
        store(at, splat(kHidden));
        continue;
      }
      VI seen = index >= birth;
      if (a.rule) {
        const VI same = (gist == a.key_gist[key0 + s]) & (gist >= 0);
        seen = a.rule == 1 ? (seen | same) : (seen & (~same | (index == birth)));
      }
      seen = seen & (index < death) & (since <= birth);
      store(at, choose(seen, load(at), splat(kHidden)));
    }
  }
}

// ks [units][nk * bk][D]: keys (or values) of every (row, kv head) in sorted order.
inline std::vector<float> sorted(const FlashArguments& a, const float* x) {
  const int64_t units = a.B * a.Hkv, places = a.nk * a.bk;
  std::vector<float> all(units * places * a.D);
  parallel_for(units * a.nk, units * places * 0.01, [&](int64_t item) noexcept {
    const int64_t u = item / a.nk, j = item % a.nk, b = u / a.Hkv, g = u % a.Hkv;
    const int32_t* order = a.order + (u * a.R / units) * places + j * a.bk;
    float* to = all.data() + (u * places + j * a.bk) * a.D;
    for (int64_t s = 0; s < a.bk; ++s)
      std::memcpy(to + s * a.D, x + ((b * a.S + order[s]) * a.Hkv + g) * a.D, a.D * sizeof(float));
  });
  return all;
}

// Softmax of the scores in p, by a maximum that is at most kSlack too low: until it is more, what was summed stays.
// Each query decides for itself, so that it does not depend on what others see.
inline void soften(const FlashArguments& a, FlashTile& t) {
  V rise = splat(kHidden);
  for (int64_t c = 0; c < a.bq; c += kLanes) {
    V best = load(t.p + c);
    for (int64_t s = 1; s < a.bk; ++s) {
      const V x = load(t.p + s * a.bq + c);
      best = choose(x > best, x, best);
    }
    store(t.best + c, best);
    best -= load(t.top + c);
    rise = choose(best > rise, best, rise);
  }
  if (largest(rise) > kSlack) {
    for (int64_t c = 0; c < a.bq; c += kLanes) {
      const V before = load(t.top + c), best = load(t.best + c);
      const VI risen = best - before > kSlack;
      const V shrink = choose(risen, power_of_two(before - best), splat(1));
      store(t.top + c, choose(risen, best, before));
      store(t.total + c, load(t.total + c) * shrink);
      for (int64_t d = 0; d < a.D; ++d) store(t.acc + d * a.bq + c, load(t.acc + d * a.bq + c) * shrink);
    }
  }
  for (int64_t c = 0; c < a.bq; c += kLanes) {
    const V top = load(t.top + c);
    V sum = load(t.total + c);
    for (int64_t s = 0; s < a.bk; ++s) {
      const V w = power_of_two(load(t.p + s * a.bq + c) - top);
      store(t.p + s * a.bq + c, w);
      sum += w;
    }
    store(t.total + c, sum);
  }
}

inline void flash_forward_tile(const FlashArguments& a, FlashTile& t, const float* ks, const float* vs, int64_t u,
                               int64_t i, int64_t h) {
  const int64_t b = u / a.Hkv, list = u * a.R / (a.B * a.Hkv), first = i * a.bq;
  take_rows(a, a.q, b, h, first, a.scale * kLog2E, t.rows);
  turn(t.rows, a.bq, a.D, a.D, t.turned, a.bq);
  std::memset(t.acc, 0, a.D * a.bq * sizeof(float));
  std::fill(t.top, t.top + a.bq, kLowest);
  std::fill(t.total, t.total + a.bq, 0.0f);
  const int32_t* listed = a.blocks + (list * a.nq + i) * a.nk;
  const int32_t full = a.n_full[list * a.nq + i], active = a.n_active[list * a.nq + i];
  for (int32_t n = 0; n < active; ++n) {
    const int64_t j = listed[n], at = (u * a.nk + j) * a.bk * a.D;
    product(a.bk, a.bq, a.D, ks + at, a.D, 1, t.turned, a.bq, nullptr, 0, t.p, a.bq);
    if (n >= full) hide(a, list, i, j, t.p);
    soften(a, t);
    product(a.D, a.bq, a.bk, vs + at, 1, a.D, t.p, a.bq, t.acc, a.bq, t.acc, a.bq);
  }
  for (int64_t c = 0; c < a.bq; c += kLanes) {
    const V total = load(t.total + c);
    const V share = 1.0f / choose(total > V{}, total, splat(1));
    for (int64_t d = 0; d < a.D; ++d) store(t.acc + d * a.bq + c, load(t.acc + d * a.bq + c) * share);
  }
  put_turned(a, t.acc, b, h, first, t.rows, a.out);
  for (int64_t n = 0; n < std::min(a.bq, a.S - first); ++n)
    a.lse[(b * a.H + h) * a.S + first + n] = t.total[n] > 0 ? t.top[n] * kLn2 + std::log(t.total[n]) : -kHidden;
}

inline double flash_microseconds(const FlashArguments& a, int products) {
  double pairs = 0;
  for (int64_t n = 0; n < a.R * a.nq; ++n) pairs += a.n_active[n];
  return pairs * a.bq * a.bk * a.D * a.H * a.B / a.R * products * 2e-5 + 1;
}

inline void flash_forward(const FlashArguments& a) {
  const std::vector<float> ks = sorted(a, a.k), vs = sorted(a, a.v);
  const int64_t items = a.B * a.H * a.nq, group = a.H / a.Hkv;
  const FlashRoom room(a);
  parallel_for(items, flash_microseconds(a, 2), [&](int64_t item) noexcept {
    FlashTile tile = room.own();
    const int64_t unit = item / (a.nq * group), i = item / group % a.nq, g = item % group;
    flash_forward_tile(a, tile, ks.data(), vs.data(), unit, i, unit % a.Hkv * group + g);
  });
}

inline void flash_backward_tile(const FlashArguments& a, const FlashGradients& g, FlashTile& t, const float* ks,
                                const float* vs, float* dk, float* dv, int64_t u, int64_t i, int64_t h) {
  const int64_t b = u / a.Hkv, list = u * a.R / (a.B * a.Hkv), first = i * a.bq;
  take_rows(a, a.q, b, h, first, a.scale * kLog2E, t.rows);
  take_rows(a, g.dout, b, h, first, 1, t.drows);
  turn(t.rows, a.bq, a.D, a.D, t.turned, a.bq);
  turn(t.drows, a.bq, a.D, a.D, t.dturned, a.bq);
  std::memset(t.acc, 0, a.D * a.bq * sizeof(float));
  for (int64_t n = 0; n < a.bq; ++n) {
    const bool inside = first + n < a.S;
    t.top[n] = inside ? -kLog2E * a.lse[(b * a.H + h) * a.S + first + n] : kHidden;
    V delta{};
    if (inside) {
      const float* out = a.out + ((b * a.S + first + n) * a.H + h) * a.D;
      for (int64_t d = 0; d < a.D; d += kLanes) delta -= load(out + d) * load(t.drows + n * a.D + d);
    }
    t.total[n] = sum(delta);
  }
  const int32_t* listed = a.blocks + (list * a.nq + i) * a.nk;
  const int32_t full = a.n_full[list * a.nq + i], active = a.n_active[list * a.nq + i];
  for (int32_t n = 0; n < active; ++n) {
    const int64_t j = listed[n], at = (u * a.nk + j) * a.bk * a.D, own = j * a.bk * a.D;
    product(a.bk, a.bq, a.D, ks + at, a.D, 1, t.turned, a.bq, t.top, 0, t.p, a.bq);
    if (n >= full) hide(a, list, i, j, t.p);
    product(a.bk, a.bq, a.D, vs + at, a.D, 1, t.dturned, a.bq, t.total, 0, t.ds, a.bq);
    for (int64_t n = 0; n < a.bk * a.bq; n += kLanes) {
      const V w = power_of_two(load(t.p + n));
      store(t.p + n, w);
      store(t.ds + n, w * load(t.ds + n));
    }
    product(a.bk, a.D, a.bq, t.p, a.bq, 1, t.drows, a.D, dv + own, a.D, dv + own, a.D);
    product(a.bk, a.D, a.bq, t.ds, a.bq, 1, t.rows, a.D, dk + own, a.D, dk + own, a.D);
    product(a.D, a.bq, a.bk, ks + at, 1, a.D, t.ds, a.bq, t.acc, a.bq, t.acc, a.bq);
  }
  for (int64_t n = 0; n < a.D * a.bq; n += kLanes) store(t.acc + n, load(t.acc + n) * a.scale);
  put_turned(a, t.acc, b, h, first, t.drows, g.dq);
}

// Every (row, kv head) is cut into parts of interleaved query blocks, each with its own sums of dk and dv: two for every
// thread, so that all end together, but never more than four. The sums, [units][parts][2][keys][D] on the heap, where XLA
// does not count them, are then at most four times what dk and dv take themselves, whatever the number of threads.
inline int64_t flash_parts(int64_t threads, int64_t units, int64_t blocks) {
  if (threads == 1) return 1;
  return std::max<int64_t>(1, std::min({(2 * threads + units - 1) / units, blocks, int64_t{4}}));
}

inline void flash_backward(const FlashArguments& a, const FlashGradients& g) {
  const std::vector<float> ks = sorted(a, a.k), vs = sorted(a, a.v);
  const int64_t units = a.B * a.Hkv, group = a.H / a.Hkv, size = a.nk * a.bk * a.D;
  const int64_t parts = flash_parts(Pool::get().threads(), units, a.nq);
  std::vector<float> sums(units * parts * 2 * size);
  const FlashRoom room(a);
  parallel_for(units * parts, flash_microseconds(a, 5), [&](int64_t item) noexcept {
    const int64_t u = item / parts;
    float* dk = sums.data() + item * 2 * size;
    FlashTile tile = room.own();
    for (int64_t i = item % parts; i < a.nq; i += parts)
      for (int64_t h = 0; h < group; ++h)
        flash_backward_tile(a, g, tile, ks.data(), vs.data(), dk, dk + size, u, i, u % a.Hkv * group + h);
  });
  parallel_for(units * a.nk, units * parts * size * 5e-4, [&](int64_t item) noexcept {
    const int64_t u = item / a.nk, j = item % a.nk, b = u / a.Hkv;
    const int32_t* order = a.order + (u * a.R / units) * a.nk * a.bk;
    for (int64_t s = j * a.bk; s < std::min((j + 1) * a.bk, a.S); ++s) {
      const int64_t to = ((b * a.S + order[s]) * a.Hkv + u % a.Hkv) * a.D;
      for (int64_t d = 0; d < a.D; d += kLanes) {
        V k{}, v{};
        for (int64_t part = 0; part < parts; ++part) {
          const float* from = sums.data() + (u * parts + part) * 2 * size + s * a.D + d;
          k += load(from), v += load(from + size);
        }
        store(g.dk + to + d, k * kLn2), store(g.dv + to + d, v);
      }
    }
  });
}

}  // namespace lt
