// out[M, N] = x[M, K] @ w[K, N] + bias for few rows, weights in panels of 32 columns: [N/32, K, 32], float32 or bfloat16.
//
// A panel is one contiguous stream, read once per group of rows; bfloat16 becomes float32 in registers (exactly), and sums
// are float32. Rows are taken in tiles as high as the registers hold.
#pragma once

#include <algorithm>
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
constexpr int64_t kGroup = 96;  // rows that go through a panel before the next panel is read

template <int R, int U, typename W>
inline void tile(const float* x, int64_t ldx, const W* panel, int64_t K, const float* bias, float* out, int64_t ldo) {
  V sum[U][R][2] = {};
  int64_t k = 0;
  for (; k + U <= K; k += U) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      V low, high;
      load_line(panel + (k + u) * kPanel, low, high);
      __builtin_prefetch(panel + (k + u) * kPanel + 2048 / sizeof(W));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const float value = x[r * ldx + k + u];
        sum[u][r][0] += low * value;
        sum[u][r][1] += high * value;
      }
    }
  }
  for (; k < K; ++k) {
    V low, high;
    load_line(panel + k * kPanel, low, high);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      sum[0][r][0] += low * x[r * ldx + k];
      sum[0][r][1] += high * x[r * ldx + k];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      V total = sum[0][r][half];
#pragma GCC unroll 4
      for (int u = 1; u < U; ++u) total += sum[u][r][half];
      store(out + r * ldo + half * kLanes, total + load(bias + half * kLanes));
    }
  }
}

template <typename W, int R = 1>
inline void tile_of(int rows, const float* x, int64_t ldx, const W* panel, int64_t K, const float* bias, float* out,
                    int64_t ldo) {
  if (rows == R) {
    tile<R, R <= 2 ? 4 : R == 3 ? 2 : 1>(x, ldx, panel, K, bias, out, ldo);
  } else if constexpr (R < kTile) {
    tile_of<W, R + 1>(rows, x, ldx, panel, K, bias, out, ldo);
  }
}

struct MatmulArguments {
  const float* x;
  const float* bias;  // nullptr: none
  float* out;
  int64_t M, K, N;
};

// Rows [first, last) through one panel.
template <typename W>
void panel_rows(const MatmulArguments& a, const float* x, int64_t ldx, const W* w, int64_t panel, int64_t first,
                int64_t last) {
  const int64_t column = panel * kPanel;
  const int64_t width = std::min<int64_t>(kPanel, a.N - column);
  alignas(64) float bias[kPanel] = {};
  if (a.bias != nullptr) std::copy_n(a.bias + column, width, bias);
  const W* weights = w + panel * a.K * kPanel;
  const int64_t tiles = last - first <= kTile ? 1 : (last - first + kGood - 1) / kGood;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t from = first + (last - first) * t / tiles;
    const int rows = static_cast<int>(first + (last - first) * (t + 1) / tiles - from);
    float* out = a.out + from * a.N + column;
    if (width == kPanel) {
      tile_of<W>(rows, x + from * ldx, ldx, weights, a.K, bias, out, a.N);
    } else {
      alignas(64) float whole[kTile * kPanel];
      tile_of<W>(rows, x + from * ldx, ldx, weights, a.K, bias, whole, kPanel);
      for (int r = 0; r < rows; ++r) std::copy_n(whole + r * kPanel, width, out + r * a.N);
    }
  }
}

template <typename W>
void matmul(const MatmulArguments& a, const W* w) {
  if (a.M == 0 || a.N == 0) return;
  const int64_t panels = (a.N + kPanel - 1) / kPanel;
  const int64_t groups = (a.M + kGroup - 1) / kGroup;
  // Rows whose distance is a multiple of 4 KiB fall into one set of the first-level cache; spread them.
  const float* x = a.x;
  int64_t ldx = a.K;
  static thread_local std::vector<float> spread;
  if (a.M > 4 && a.K % 1024 == 0) {
    ldx = a.K + kLanes;
    if (static_cast<int64_t>(spread.size()) < a.M * ldx) spread.resize(a.M * ldx);
    for (int64_t r = 0; r < a.M; ++r) std::copy_n(a.x + r * a.K, a.K, spread.data() + r * ldx);
    x = spread.data();
  }
  const double work = static_cast<double>(a.M) * a.K * a.N;
  // Small pieces, so that both ends meet: but none below about two microseconds.
  const int64_t wanted = std::clamp<int64_t>(work / 5e4, 1, 16 * Pool::get().threads());
  const int64_t chunk = std::max<int64_t>(1, panels * groups / wanted);
  const int64_t chunks = (panels + chunk - 1) / chunk;
  parallel_for(groups * chunks, [&](int64_t item) {
    const int64_t group = item / chunks;
    const int64_t first = group * kGroup, last = std::min(a.M, first + kGroup);
    const int64_t end = std::min(panels, (item % chunks + 1) * chunk);
    for (int64_t panel = item % chunks * chunk; panel < end; ++panel) panel_rows(a, x, ldx, w, panel, first, last);
  });
}

}  // namespace lt
