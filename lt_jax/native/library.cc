// What XLA calls. Shapes are checked here, because nothing else stands between a wrong one and memory.
#include <string>

#include "attention.h"
#include "matmul.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;

#define LT_CHECK(condition, message) \
  if (!(condition)) return ffi::Error::InvalidArgument(message)

// x [M, K], panels [N/32, K, 32], bias [N] or [0] -> [M, N].
static ffi::Error Matmul(Floats x, ffi::AnyBuffer panels, Floats bias, ffi::Result<Floats> out) {
  const auto w = panels.dimensions();
  LT_CHECK(x.dimensions().size() == 2 && w.size() == 3 && out->dimensions().size() == 2, "matmul: wrong ranks");
  const int64_t M = x.dimensions()[0], K = x.dimensions()[1], N = out->dimensions()[1];
  LT_CHECK(w[0] == (N + lt::kPanel - 1) / lt::kPanel && w[1] == K && w[2] == lt::kPanel, "matmul: panels do not fit x and out");
  LT_CHECK(out->dimensions()[0] == M, "matmul: x and out differ in rows");
  const int64_t biases = bias.element_count();
  LT_CHECK(biases == 0 || biases == N, "matmul: bias does not fit out");
  const lt::MatmulArguments a{x.typed_data(), biases ? bias.typed_data() : nullptr, out->typed_data(), M, K, N};
  if (panels.element_type() == ffi::F32) {
    lt::matmul(a, static_cast<const float*>(panels.untyped_data()));
  } else if (panels.element_type() == ffi::BF16) {
    lt::matmul(a, static_cast<const lt::bf16*>(panels.untyped_data()));
  } else {
    return ffi::Error::InvalidArgument("matmul: panels are neither float32 nor bfloat16");
  }
  return ffi::Error::Success();
}

template <typename K>
static void WriteAndAttend(const lt::AttentionArguments& a, const float* k, const float* v, const int32_t* start,
                           int64_t offset, void* keys, void* values) {
  K* own_keys = static_cast<K*>(keys) + offset;
  K* own_values = static_cast<K*>(values) + offset;
  lt::append(a, k, start, own_keys);
  lt::append(a, v, start, own_values);
  lt::attention<K>(a, own_keys, own_values);
}

// q [R, T, H, D], k and v [R, T, Hkv, D], caches [L, B, Hkv, C, D] (the same memory in and out), layer [], rows, start and
// bound [R], mask [R, Kb, T, C] -> attended [R, T, H, D] and the caches.
static ffi::Error Attend(Floats q, Floats k, Floats v, ffi::AnyBuffer keys, ffi::AnyBuffer values, Ints layer, Ints rows,
                         Ints start, Ints bound, ffi::Buffer<ffi::PRED> mask, ffi::Result<Floats> out,
                         ffi::Result<ffi::AnyBuffer> keys_out, ffi::Result<ffi::AnyBuffer> values_out) {
  const auto shape = q.dimensions(), cache = keys.dimensions(), seen = mask.dimensions();
  LT_CHECK(shape.size() == 4 && cache.size() == 5 && seen.size() == 4, "attend: wrong ranks");
  lt::AttentionArguments a{};
  a.R = shape[0], a.T = shape[1], a.H = shape[2], a.D = shape[3];
  a.Hkv = cache[2], a.C = cache[3], a.Kb = seen[1];
  const int64_t fresh = a.R * a.T * a.Hkv * a.D;
  LT_CHECK(cache[4] == a.D && a.Hkv > 0 && a.H % a.Hkv == 0, "attend: heads do not fit the cache");
  LT_CHECK(a.D % lt::kLanes == 0 && a.D <= lt::kMostHeadSize, "attend: head size is not a multiple of 16 up to 256");
  LT_CHECK(static_cast<int64_t>(k.element_count()) == fresh && static_cast<int64_t>(v.element_count()) == fresh,
           "attend: new keys do not fit the cache");
  LT_CHECK(values.element_count() == keys.element_count() && values.element_type() == keys.element_type(),
           "attend: keys and values differ");
  LT_CHECK(seen[0] == a.R && (a.Kb == 1 || a.Kb == a.Hkv) && seen[2] == a.T && seen[3] == a.C, "attend: mask does not fit");
  LT_CHECK(out->element_count() == q.element_count(), "attend: result does not fit");
  for (const Ints* x : {&rows, &start, &bound})
    LT_CHECK(static_cast<int64_t>(x->element_count()) == a.R, "attend: rows, start and bound need one number per row");
  LT_CHECK(keys_out->untyped_data() == keys.untyped_data() && values_out->untyped_data() == values.untyped_data(),
           "attend: the cache is not updated in place");
  const int64_t number = layer.typed_data()[0];
  LT_CHECK(number >= 0 && number < cache[0], "attend: no such layer");
  for (int64_t r = 0; r < a.R; ++r) {
    const int64_t row = rows.typed_data()[r], first = start.typed_data()[r];
    LT_CHECK(row >= 0 && row < cache[1], "attend: no such row");
    LT_CHECK(first >= 0 && first + a.T <= a.C, "attend: slots " + std::to_string(first) + " to " +
             std::to_string(first + a.T - 1) + " of a cache of " + std::to_string(a.C));
  }
  a.q = q.typed_data(), a.out = out->typed_data();
  a.mask = reinterpret_cast<const uint8_t*>(mask.typed_data());
  a.rows = rows.typed_data(), a.bound = bound.typed_data();
  a.scale = 1 / std::sqrt(static_cast<float>(a.D));
  const int64_t offset = number * cache[1] * a.Hkv * a.C * a.D;
  const auto run = keys.element_type() == ffi::F32    ? WriteAndAttend<float>
                   : keys.element_type() == ffi::BF16 ? WriteAndAttend<lt::bf16>
                                                      : nullptr;
  LT_CHECK(run != nullptr, "attend: the cache is neither float32 nor bfloat16");
  run(a, k.typed_data(), v.typed_data(), start.typed_data(), offset, keys.untyped_data(), values.untyped_data());
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(LtMatmul, Matmul,
                              ffi::Ffi::Bind().Arg<Floats>().Arg<ffi::AnyBuffer>().Arg<Floats>().Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LtAttend, Attend,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Ret<Floats>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
