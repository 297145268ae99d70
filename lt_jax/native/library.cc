// What XLA calls. Shapes are checked here, because nothing else stands between a wrong one and memory. An operand without
// elements stands for one that is not there.
#include <string>

#include "attention.h"
#include "matmul.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;

#define LT_CHECK(condition, message) \
  if (!(condition)) return ffi::Error::InvalidArgument(message)

static int64_t count(const Floats& x) { return static_cast<int64_t>(x.element_count()); }
static const float* given(const Floats& x) { return x.element_count() == 0 ? nullptr : x.typed_data(); }

// x [M, K], panels [N/32, K, 32] (gated: [N/16, K, 32]), bias [N], norm [K], residual [M, N] -> [M, N].
static ffi::Error Matmul(Floats x, ffi::AnyBuffer panels, Floats bias, Floats norm, Floats residual,
                         ffi::Result<Floats> out, float eps, bool gated) {
  const auto w = panels.dimensions();
  LT_CHECK(x.dimensions().size() == 2 && w.size() == 3 && out->dimensions().size() == 2, "matmul: wrong ranks");
  const int64_t M = x.dimensions()[0], K = x.dimensions()[1], N = out->dimensions()[1];
  const int64_t full = gated ? lt::kLanes : lt::kPanel;
  LT_CHECK(w[0] == (N + full - 1) / full && w[1] == K && w[2] == lt::kPanel, "matmul: panels do not fit x and out");
  LT_CHECK(out->dimensions()[0] == M, "matmul: x and out differ in rows");
  LT_CHECK(count(bias) == 0 || (count(bias) == N && !gated), "matmul: bias does not fit");
  LT_CHECK(count(norm) == 0 || count(norm) == K, "matmul: norm does not fit");
  LT_CHECK(count(residual) == 0 || count(residual) == M * N, "matmul: residual does not fit");
  const lt::MatmulArguments a{x.typed_data(),  given(norm), eps, given(bias), given(residual),
                              out->typed_data(), M,           K,   N,           gated};
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
static void Run(const lt::AttentionArguments& a, int64_t offset, void* keys, void* values) {
  lt::attention<K>(a, static_cast<K*>(keys) + offset, static_cast<K*>(values) + offset);
}

// fresh [R, T, H + 2 Hkv, D], caches [L, B, Hkv, C, D] (the same memory in and out), layer [], rows, start and bound [R],
// mask [R, Kb, T, C], cosine and sine [R, T, D/2], norms [D] -> attended [R, T, H, D] and the caches.
static ffi::Error Attend(Floats fresh, ffi::AnyBuffer keys, ffi::AnyBuffer values, Ints layer, Ints rows, Ints start,
                         Ints bound, ffi::Buffer<ffi::PRED> mask, Floats cosine, Floats sine, Floats query_norm,
                         Floats key_norm, ffi::Result<Floats> out, ffi::Result<ffi::AnyBuffer> keys_out,
                         ffi::Result<ffi::AnyBuffer> values_out, float eps) {
  const auto shape = fresh.dimensions(), cache = keys.dimensions(), seen = mask.dimensions();
  LT_CHECK(shape.size() == 4 && cache.size() == 5 && seen.size() == 4, "attend: wrong ranks");
  lt::AttentionArguments a{};
  a.Hkv = cache[2], a.C = cache[3], a.Kb = seen[1];
  a.R = shape[0], a.T = shape[1], a.H = shape[2] - 2 * a.Hkv, a.D = shape[3];
  LT_CHECK(cache[4] == a.D && a.Hkv > 0 && a.H > 0 && a.H % a.Hkv == 0, "attend: heads do not fit the cache");
  LT_CHECK(a.D % lt::kLanes == 0 && a.D <= lt::kMostHeadSize, "attend: head size is not a multiple of 16 up to 256");
  LT_CHECK(values.element_count() == keys.element_count() && values.element_type() == keys.element_type(),
           "attend: keys and values differ");
  LT_CHECK(seen[0] == a.R && (a.Kb == 1 || a.Kb == a.Hkv) && seen[2] == a.T && seen[3] == a.C,
           "attend: mask does not fit");
  LT_CHECK(count(*out) == a.R * a.T * a.H * a.D, "attend: result does not fit");
  for (const Ints* x : {&rows, &start, &bound})
    LT_CHECK(static_cast<int64_t>(x->element_count()) == a.R, "attend: rows, start and bound need one number per row");
  for (const Floats* x : {&cosine, &sine})
    LT_CHECK(count(*x) == 0 || count(*x) == a.R * a.T * a.D / 2, "attend: angles do not fit");
  for (const Floats* x : {&query_norm, &key_norm})
    LT_CHECK(count(*x) == 0 || count(*x) == a.D, "attend: norms do not fit");
  LT_CHECK((count(cosine) == 0) == (count(sine) == 0), "attend: one of cosine and sine is missing");
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
  a.fresh = fresh.typed_data(), a.out = out->typed_data();
  a.cosine = given(cosine), a.sine = given(sine);
  a.query_norm = given(query_norm), a.key_norm = given(key_norm), a.eps = eps;
  a.mask = reinterpret_cast<const uint8_t*>(mask.typed_data());
  a.rows = rows.typed_data(), a.start = start.typed_data(), a.bound = bound.typed_data();
  const int64_t offset = number * cache[1] * a.Hkv * a.C * a.D;
  const auto run = keys.element_type() == ffi::F32    ? Run<float>
                   : keys.element_type() == ffi::BF16 ? Run<lt::bf16>
                                                      : nullptr;
  LT_CHECK(run != nullptr, "attend: the cache is neither float32 nor bfloat16");
  run(a, offset, keys.untyped_data(), values.untyped_data());
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(LtMatmul, Matmul,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Attr<float>("eps")
                                  .Attr<bool>("gated"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(LtAttend, Attend,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<float>("eps"));
