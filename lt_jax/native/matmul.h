// out[M, N] = residual + norm(x)[M, K] @ w[K, N] + bias for few rows, or silu(gate) * up of two such products.
//
// Weights come in panels of 32 columns, [N/32, K, 32], float32 or bfloat16: one contiguous stream each, read once per group
// of rows. bfloat16 becomes float32 in registers (exactly), and sums are float32. Rows are taken in tiles as high as the
// registers hold. What stands around the product (norm, bias, gate, residual) costs a pass over memory each, and a call,
// where XLA does it; here it costs next to nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"
#include "vector.h"

namespace lt {

constexpr int kPanel = 32;
#if defined(__AVX512F__)
constexpr int kTile = 8;  // most rows of a tile
constexpr int kGood = 7;  // rows of a tile where there are many: no register is spilled
#else
constexpr int kTile = 3;
constexpr int kGood = 3;
#endif
constexpr int kUnroll = 4;      // steps along K at once
constexpr int64_t kGroup = 96;  // rows that go through a panel before the next panel is read

struct MatmulArguments {
  const float* x;         // [M, K]
  const float* norm;      // [K], weights of the RMS norm of x's rows; nullptr: x as it is
  float eps;              // of the norm
  const float* bias;      // [N]; nullptr: none
  const float* residual;  // [M, N]; nullptr: none
  float* out;             // [M, N]
  int64_t M, K, N;
  bool gated;  // a panel holds sixteen columns of a gate and the same sixteen of what it gates
};

// What becomes of the sums of one row and panel.
struct Finish {
  const float* bias;      // 32 (gated: unused)
  const float* residual;  // the tile's corner, in rows of ldo; nullptr: none
  float* out;             // the same corner
  int64_t ldo;
  bool gated;

  inline void operator()(int row, V low, V high) const {
    float* to = out + row * ldo;
    if (gated) {
      V value = silu(low) * high;
      if (residual != nullptr) value += load(residual + row * ldo);
      store(to, value);
      return;
    }
    low += load(bias);
    high += load(bias + kLanes);
    if (residual != nullptr) {
      low += load(residual + row * ldo);
      high += load(residual + row * ldo + kLanes);
    }
    store(to, low);
    store(to + kLanes, high);
  }
};

// R rows through a panel; U sets of sums, so that few rows still keep the multipliers busy.
template <int R, int U, typename W>
inline void tile(const float* x, const W* panel, int64_t K, const Finish& finish) {
  V sum[U][R][2] = {};
  const float* rows[R];  // each in a register of its own: the compiler's choice is slower
  for (int r = 0; r < R; ++r) rows[r] = x + r * K;
  int64_t k = 0;
  for (; k + kUnroll <= K; k += kUnroll) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) {
      V low, high;
      load_line(panel + (k + u) * kPanel, low, high);
      __builtin_prefetch(panel + (k + u) * kPanel + 2048 / sizeof(W));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const float value = rows[r][k + u];
        sum[u % U][r][0] += low * value;
        sum[u % U][r][1] += high * value;
      }
    }
  }
  for (; k < K; ++k) {
    V low, high;
    load_line(panel + k * kPanel, low, high);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      sum[0][r][0] += low * rows[r][k];
      sum[0][r][1] += high * rows[r][k];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int u = 1; u < U; ++u) {
      sum[0][r][0] += sum[u][r][0];
      sum[0][r][1] += sum[u][r][1];
    }
    finish(r, sum[0][r][0], sum[0][r][1]);
  }
}

template <typename W, int R = 1>
inline void tile_of(int rows, const float* x, const W* panel, int64_t K, const Finish& finish) {
  if (rows == R) {
    tile<R, R <= 2 ? 4 : R == 3 ? 2 : 1>(x, panel, K, finish);
  } else if constexpr (R < kTile) {
    tile_of<W, R + 1>(rows, x, panel, K, finish);
  }
}

// Rows [first, last) through one panel.
template <typename W>
void panel_rows(const MatmulArguments& a, const float* x, const W* w, int64_t panel, int64_t first, int64_t last) {
  const int64_t full = a.gated ? kLanes : kPanel, column = panel * full;
  const int64_t width = std::min<int64_t>(full, a.N - column);
  alignas(64) float bias[kPanel] = {};
  if (a.bias != nullptr) std::copy_n(a.bias + column, width, bias);
  const W* weights = w + panel * a.K * kPanel;
  const int64_t tiles = last - first <= kTile ? 1 : (last - first + kGood - 1) / kGood;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t from = first + (last - first) * t / tiles, corner = from * a.N + column;
    const int rows = static_cast<int>(first + (last - first) * (t + 1) / tiles - from);
    const float* residual = a.residual == nullptr ? nullptr : a.residual + corner;
    if (width == full) {
      tile_of<W>(rows, x + from * a.K, weights, a.K, Finish{bias, residual, a.out + corner, a.N, a.gated});
      continue;
    }
    alignas(64) float whole[kTile * kPanel];
    tile_of<W>(rows, x + from * a.K, weights, a.K, Finish{bias, nullptr, whole, kPanel, a.gated});
    for (int r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; ++c)
        a.out[corner + r * a.N + c] = whole[r * kPanel + c] + (residual == nullptr ? 0 : residual[r * a.N + c]);
  }
}

inline void norm_row(const float* x, const float* weights, float eps, int64_t K, float* to) {
  V squares = {};
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) squares += load(x + k) * load(x + k);
  float total = sum(squares);
  for (; k < K; ++k) total += x[k] * x[k];
  const float scale = 1 / std::sqrt(total / K + eps);
  for (k = 0; k < K; ++k) to[k] = x[k] * scale * weights[k];
}

// The rows of x, normed where that is asked for.
inline const float* prepare_rows(const MatmulArguments& a, std::vector<float>& room) {
  if (a.norm == nullptr) return a.x;
  if (static_cast<int64_t>(room.size()) < a.M * a.K) room.resize(a.M * a.K);
  const int64_t each = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, a.K));
  float* to = room.data();
  parallel_for((a.M + each - 1) / each, a.M * a.K / 4e3, [&, to](int64_t item) noexcept {
    for (int64_t r = item * each; r < std::min(a.M, (item + 1) * each); ++r)
      norm_row(a.x + r * a.K, a.norm, a.eps, a.K, to + r * a.K);
  });
  return to;
}

template <typename W>
void matmul(const MatmulArguments& a, const W* w) {
  if (a.M == 0 || a.N == 0) return;
  static thread_local std::vector<float> room;
  const float* x = prepare_rows(a, room);
  const int64_t full = a.gated ? kLanes : kPanel;
  const int64_t panels = (a.N + full - 1) / full;
  const int64_t groups = (a.M + kGroup - 1) / kGroup;
  // Small pieces, so that all threads end together, but none below about a microsecond.
  const double microseconds = static_cast<double>(a.M) * a.K * panels * kPanel / 5e4;
  const int64_t wanted = std::clamp<int64_t>(microseconds, 1, 16 * Pool::get().threads());
  const int64_t chunk = std::max<int64_t>(1, panels * groups / wanted);
  const int64_t chunks = (panels + chunk - 1) / chunk;
  parallel_for(groups * chunks, microseconds, [&](int64_t item) noexcept {
    const int64_t group = item / chunks;
    const int64_t first = group * kGroup, last = std::min(a.M, first + kGroup);
    const int64_t end = std::min(panels, (item % chunks + 1) * chunk);
    for (int64_t panel = item % chunks * chunk; panel < end; ++panel) panel_rows(a, x, w, panel, first, last);
  });
}

}  // namespace lt
