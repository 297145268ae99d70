// What XLA calls. Shapes are checked here, because nothing else stands between a wrong one and memory. An operand without
// elements stands for one that is not there.
#include <new>
#include <string>

#include "attention.h"
#include "flash.h"
#include "matmul.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;

#define LT_CHECK(condition, message) \
  if (!(condition)) return ffi::Error::InvalidArgument(message)

// Room that cannot be had is an error of the call and not the end of the process.
template <typename F>
static ffi::Error Ran(const F& run) {
  try {
    run();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "lt_jax native: out of memory");
  }
  return ffi::Error::Success();
}

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
    return Ran([&] { lt::matmul(a, static_cast<const float*>(panels.untyped_data())); });
  }
  if (panels.element_type() == ffi::BF16) {
    return Ran([&] { lt::matmul(a, static_cast<const lt::bf16*>(panels.untyped_data())); });
  }
  return ffi::Error::InvalidArgument("matmul: panels are neither float32 nor bfloat16");
}

template <typename K>
static void Run(const lt::AttentionArguments& a, int64_t offset, void* keys, void* values) {
  lt::attention<K>(a, static_cast<K*>(keys) + offset, static_cast<K*>(values) + offset);
}

// fresh [R, T, H + 2 Hkv, D], caches [L, B, Hkv, C, D] (the same memory in and out), layer [], rows, start and bound [R],
// mask [R, Kb, T, C], cosine and sine [R, T, D/2], norms [D] -> attended [R, T, H, D], the caches, and received
// [R, Hkv, C] or [0]: not wanted.
static ffi::Error Attend(Floats fresh, ffi::AnyBuffer keys, ffi::AnyBuffer values, Ints layer, Ints rows, Ints start,
                         Ints bound, ffi::Buffer<ffi::PRED> mask, Floats cosine, Floats sine, Floats query_norm,
                         Floats key_norm, ffi::Result<Floats> out, ffi::Result<ffi::AnyBuffer> keys_out,
                         ffi::Result<ffi::AnyBuffer> values_out, ffi::Result<Floats> received, float eps) {
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
  LT_CHECK(count(*received) == 0 || count(*received) == a.R * a.Hkv * a.C, "attend: received does not fit");
  a.received = count(*received) == 0 ? nullptr : received->typed_data();
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
  return Ran([&] { run(a, offset, keys.untyped_data(), values.untyped_data()); });
}

// What both directions are given; 0 where a shape does not fit.
static const char* Flash(lt::FlashArguments& a, const Floats& q, const Floats& k, const Floats& v, const Ints& order,
                         const Ints& birth, const Ints& death, const Ints& key_gist, const Ints& query_gist,
                         const Ints& since, const Ints& blocks, const Ints& full, const Ints& active, float scale,
                         int32_t rule) {
  const auto shape = q.dimensions(), kv = k.dimensions(), lists = blocks.dimensions(), keys = birth.dimensions();
  if (shape.size() != 4 || kv.size() != 4 || lists.size() != 3 || keys.size() != 3) return "flash: wrong ranks";
  a.B = shape[0], a.S = shape[1], a.H = shape[2], a.D = shape[3], a.Hkv = kv[2];
  a.R = lists[0], a.nq = lists[1], a.nk = lists[2], a.bk = keys[2], a.scale = scale, a.rule = rule;
  const int64_t keyed = a.R * a.nk * a.bk;
  const auto size = [](const Ints& x) { return static_cast<int64_t>(x.element_count()); };
  const auto ints = [](const Ints& x) { return x.element_count() == 0 ? nullptr : x.typed_data(); };
  if (a.Hkv <= 0 || a.H % a.Hkv || count(k) != a.B * a.S * a.Hkv * a.D || count(v) != count(k)) return "flash: k, v";
  if (a.D % lt::kLanes || a.D > lt::kMostHeadSize) return "flash: head size is not a multiple of 16 up to 256";
  if (a.R != a.B && a.R != a.B * a.Hkv) return "flash: lists do not fit rows and heads";
  if (size(order) != keyed || size(birth) != keyed || size(death) != keyed) return "flash: keys of the plan";
  if (size(full) != a.R * a.nq || size(active) != a.R * a.nq) return "flash: lists of the plan";
  a.bq = a.nq == 0 ? 0 : size(since) / (a.R * a.nq);
  if (a.bq % lt::kLanes || a.bq <= 0 || a.nq * a.bq < a.S || a.nk * a.bk < a.S) return "flash: block sides";
  if (rule < 0 || rule > 2) return "flash: no such rule";
  if (rule && (size(key_gist) != keyed || size(query_gist) != size(since))) return "flash: gists of the plan";
  for (int64_t n = 0; n < keyed; ++n)
    if (order.typed_data()[n] < 0 || order.typed_data()[n] >= a.S) return "flash: order points outside of the row";
  for (int64_t n = 0; n < a.R * a.nq; ++n)
    if (active.typed_data()[n] < 0 || active.typed_data()[n] > a.nk) return "flash: a list is too long";
  for (int64_t n = 0; n < a.R * a.nq * a.nk; ++n)
    if (blocks.typed_data()[n] < 0 || blocks.typed_data()[n] >= a.nk) return "flash: no such block";
  a.q = q.typed_data(), a.k = k.typed_data(), a.v = v.typed_data();
  a.order = ints(order), a.birth = ints(birth), a.death = ints(death), a.since = ints(since);
  a.key_gist = ints(key_gist), a.query_gist = ints(query_gist);
  a.blocks = ints(blocks), a.n_full = ints(full), a.n_active = ints(active);
  return nullptr;
}

// q [B, S, H, D], k and v [B, S, Hkv, D] and the fields of a BlockPlan -> out [B, S, H, D], lse [B, H, S].
static ffi::Error FlashForward(Floats q, Floats k, Floats v, Ints order, Ints birth, Ints death, Ints key_gist,
                               Ints query_gist, Ints since, Ints blocks, Ints full, Ints active,
                               ffi::Result<Floats> out, ffi::Result<Floats> lse, float scale, int32_t rule) {
  lt::FlashArguments a{};
  const char* wrong = Flash(a, q, k, v, order, birth, death, key_gist, query_gist, since, blocks, full, active, scale,
                            rule);
  LT_CHECK(wrong == nullptr, wrong);
  LT_CHECK(count(*out) == count(q) && count(*lse) == a.B * a.H * a.S, "flash: results do not fit");
  a.out = out->typed_data(), a.lse = lse->typed_data();
  return Ran([&] { lt::flash_forward(a); });
}

// The same, out, lse and the gradient of out -> the gradients of q, k and v.
static ffi::Error FlashBackward(Floats q, Floats k, Floats v, Ints order, Ints birth, Ints death, Ints key_gist,
                                Ints query_gist, Ints since, Ints blocks, Ints full, Ints active, Floats out,
                                Floats lse, Floats dout, ffi::Result<Floats> dq, ffi::Result<Floats> dk,
                                ffi::Result<Floats> dv, float scale, int32_t rule) {
  lt::FlashArguments a{};
  const char* wrong = Flash(a, q, k, v, order, birth, death, key_gist, query_gist, since, blocks, full, active, scale,
                            rule);
  LT_CHECK(wrong == nullptr, wrong);
  LT_CHECK(count(out) == count(q) && count(dout) == count(q) && count(lse) == a.B * a.H * a.S && count(*dq) == count(q) &&
           count(*dk) == count(k) && count(*dv) == count(k), "flash: gradients do not fit");
  a.out = out.typed_data(), a.lse = lse.typed_data();
  const lt::FlashGradients g{dout.typed_data(), dq->typed_data(), dk->typed_data(), dv->typed_data()};
  return Ran([&] { lt::flash_backward(a, g); });
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
                                  .Ret<Floats>()
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(LtFlashForward, FlashForward,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<float>("scale")
                                  .Attr<int32_t>("rule"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(LtFlashBackward, FlashBackward,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<float>("scale")
                                  .Attr<int32_t>("rule"));
