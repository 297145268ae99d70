// What no test in Python can see of the native code: how often a loop's items run, where memory is taken, how much.
#include <cstdio>
#include <cstdlib>
#include <new>

#include "flash.h"

static thread_local bool is_main = false;
static std::atomic<int> taken_elsewhere{0};

void* operator new(size_t bytes) {
  if (!is_main) taken_elsewhere.fetch_add(1);
  if (void* room = std::malloc(bytes)) return room;
  throw std::bad_alloc();
}
void operator delete(void* room) noexcept { std::free(room); }
void operator delete(void* room, size_t) noexcept { std::free(room); }

static int fail(const char* what, int64_t a, int64_t b, int64_t c) {
  std::printf("%s: %ld %ld %ld\n", what, static_cast<long>(a), static_cast<long>(b), static_cast<long>(c));
  std::fflush(stdout);
  std::_Exit(1);
}

// Loops of 3 and of 12 items in turn, on more threads than there are cores, so that helpers come late all the time.
static void every_item_runs_once(int threads, int loops) {
  lt::Pool* pool = new lt::Pool(threads);
  std::atomic<int> calls[12];
  for (int n = 0; n < loops; ++n) {
    const int items = n % 2 ? 12 : 3;
    for (auto& count : calls) count.store(0, std::memory_order_relaxed);
    const auto body = [](const void* counts, int64_t item) noexcept {
      auto* all = const_cast<std::atomic<int>*>(static_cast<const std::atomic<int>*>(counts));
      all[item].fetch_add(1, std::memory_order_relaxed);
    };
    pool->run(items, 1e9, body, calls);
    for (int i = 0; i < 12; ++i)
      if (calls[i].load() != (i < items)) fail("loop, item, calls", n, i, calls[i].load());
  }
}

static void gradients_take_little_room() {
  for (int64_t threads = 1; threads <= 16; ++threads)
    for (int64_t units : {1, 2, 7, 64})
      for (int64_t blocks : {1, 3, 100}) {
        const int64_t parts = lt::flash_parts(threads, units, blocks);
        if (parts < 1 || parts > 4 || parts > blocks) fail("threads, units, parts", threads, units, parts);
      }
}

// One row of 256 tokens, two heads, everything visible in every block.
static void loops_take_no_memory() {
  constexpr int64_t S = 256, H = 2, D = 16, side = 16, n = S / side;
  std::vector<float> x(S * H * D, 0.5f), kv(S * D, 0.5f), out(x), dq(x), dk(kv), dv(kv), lse(H * S);
  std::vector<int32_t> order(S), death(S, 1 << 30), since(S, 0), blocks(n * n), full(n, 0), active(n, n);
  for (int64_t i = 0; i < S; ++i) order[i] = static_cast<int32_t>(i);
  for (int64_t i = 0; i < n * n; ++i) blocks[i] = static_cast<int32_t>(i % n);
  const lt::FlashArguments a{x.data(), kv.data(), kv.data(), order.data(), order.data(), death.data(), nullptr, nullptr,
                             since.data(), blocks.data(), full.data(), active.data(), out.data(), lse.data(),
                             1, S, H, 1, D, 1, n, n, side, side, 0.25f, 0};
  for (int turn = 0; turn < 200; ++turn) {
    lt::flash_forward(a);
    lt::flash_backward(a, {x.data(), dq.data(), dk.data(), dv.data()});
  }
  for (float value : out)
    if (value < 0.49f || value > 0.51f) fail("a mean of halves is not one half", 0, 0, 0);
  if (taken_elsewhere.load() > 0) fail("memory taken on helpers", taken_elsewhere.load(), 0, 0);
}

int main() {
  is_main = true;
  gradients_take_little_room();
  loops_take_no_memory();
  for (int pools = 0; pools < 24; ++pools) every_item_runs_once(2 + pools % 3 * 3, 200000);
  std::puts("right");
  std::fflush(stdout);
  std::_Exit(0);  // helpers are still asleep in their pools
}
