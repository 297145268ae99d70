// Sixteen floats at a time, in the compilers' own vector types: AVX-512, AVX2 and NEON from one text.
#pragma once

#include <cstdint>
#include <cstring>

namespace lt {

constexpr int kLanes = 16;

typedef float V __attribute__((vector_size(64)));
typedef int32_t VI __attribute__((vector_size(64)));
typedef uint32_t VU __attribute__((vector_size(64)));
typedef uint16_t VH __attribute__((vector_size(32)));

struct bf16 {
  uint16_t bits;
};

template <typename T>
inline T load_as(const void* from) {
  T to;
  std::memcpy(&to, from, sizeof(T));
  return to;
}

inline V load(const float* from) { return load_as<V>(from); }
inline V load(const bf16* from) { return (V)(__builtin_convertvector(load_as<VH>(from), VU) << 16); }
inline void store(float* to, V value) { std::memcpy(to, &value, sizeof(V)); }
inline V splat(float x) { return V{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }  // of memory: one load

// Thirty-two weights of a packed panel. bfloat16 panels keep column j in the low and column j + 16 in the high half of word
// j, so that each half of the line becomes sixteen floats with one instruction.
inline void load_line(const float* from, V& low, V& high) {
  low = load(from);
  high = load(from + kLanes);
}
inline void load_line(const bf16* from, V& low, V& high) {
  const VU words = load_as<VU>(from);
  low = (V)(words << 16);
  high = (V)(words & 0xffff0000u);
}

typedef float V8 __attribute__((vector_size(32)));
typedef float V4 __attribute__((vector_size(16)));

// Sum or maximum of all lanes, halving the vector each time.
template <typename F>
inline float reduce(V v, F f) {
  const float* from = reinterpret_cast<const float*>(&v);
  const V8 eight = f(load_as<V8>(from), load_as<V8>(from + 8));
  from = reinterpret_cast<const float*>(&eight);
  const V4 four = f(load_as<V4>(from), load_as<V4>(from + 4));
  typedef float V2 __attribute__((vector_size(8)));
  from = reinterpret_cast<const float*>(&four);
  const V2 two = f(load_as<V2>(from), load_as<V2>(from + 2));
  return f(two[0], two[1]);
}

inline float largest(V v) {
  return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}
inline float sum(V v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}

inline V choose(VI where, V a, V b) { return (V)(((VI)a & where) | ((VI)b & ~where)); }

// e^x for x <= 0, relative error below 2e-7; 0 below -87.
inline V exp_nonpositive(V x) {
  const VI tiny = x < splat(-87.0f);
  x = choose(tiny, splat(-87.0f), x);
  const V shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the rounded power of two lands in the low bits
  const V n = shifted - 12582912.0f;
  V r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const VI power = ((VI)shifted - 0x4b400000 + 127) << 23;
  return choose(tiny, V{}, p * (V)power);
}

// 2^x for x < 127, relative error below 3e-7; 0 below -126. A polynomial of degree 5 for what rounding x leaves, and
// the rounded x added to its exponent.
inline V power_of_two(V x) {
  const VI tiny = x < splat(-126.0f);
  x = choose(tiny, splat(-126.0f), x);
  const V shifted = x + 12582912.0f;  // 1.5 * 2^23: the rounded x lands in the low bits
  const V r = x - (shifted - 12582912.0f);
  V p = splat(1.3276472e-3f);
  p = p * r + 9.6755419e-3f;
  p = p * r + 5.5507131e-2f;
  p = p * r + 2.4022120e-1f;
  p = p * r + 6.9314694e-1f;
  p = p * r + 1.0000001f;
  return choose(tiny, V{}, (V)((VI)p + ((VI)shifted << 23)));
}

// x / (1 + e^-x)
inline V silu(V x) {
  const VI positive = x > V{};
  const V e = exp_nonpositive(choose(positive, -x, x));
  return x * choose(positive, splat(1), e) / (e + 1.0f);
}

}  // namespace lt
