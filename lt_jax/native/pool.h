// A small pool of helper threads for loops of a few microseconds.
//
// The caller works too and never depends on a helper: items are claimed one by one, a helper that comes late finds nothing
// left, and where the pool is in use by another caller (several XLA devices in one process) the loop runs on the caller
// alone. Helpers spin for a short while after a loop, because in decoding the next one comes within microseconds, and
// then sleep.
//
// On a busy machine a helper may lose its core in the middle of an item, and the caller waits for a whole time slice: a
// hundred times what the loop itself takes. Once that has happened the next short loops run on the caller alone.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lt {

inline void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  using Body = void (*)(const void* argument, int64_t item) noexcept;

  static Pool& get() {
    static Pool* pool = new Pool(std::min(available_cpus(), kMostThreads));
    return *pool;
  }

  // Never to be destroyed: the helpers are not waited for, and may outlive even static destructors.
  explicit Pool(int threads) : helpers_(threads - 1) {
    for (int i = 1; i <= helpers_; ++i) std::thread([this, i] { help(i); }).detach();
  }
  ~Pool() = delete;

  int threads() const { return helpers_ + 1; }

  // The number of this thread below threads(): 0 for every caller, another for each helper. What a loop hands out by this
  // number is used by one thread at a time.
  static int thread() { return number(); }

  // Calls body(argument, i) once for every i in [0, items), in any order, on any of the threads. `microseconds`: about how
  // long it takes one thread. A body must not throw, so it must not allocate either: on a helper nobody would catch it.
  void run(int64_t items, double microseconds, Body body, const void* argument) {
    if (items <= 1 || items > UINT32_MAX || helpers_ == 0 || busy_.exchange(true, std::memory_order_acquire)) {
      for (int64_t i = 0; i < items; ++i) body(argument, i);
      return;
    }
    if (alone_ > 0 && microseconds < kLong) {
      --alone_;
      busy_.store(false, std::memory_order_release);
      for (int64_t i = 0; i < items; ++i) body(argument, i);
      return;
    }
    body_.store(body, std::memory_order_relaxed);
    argument_.store(argument, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint32_t loop = static_cast<uint32_t>(word_.load(std::memory_order_relaxed) >> 32) + 1;
    word_.store(static_cast<uint64_t>(loop) << 32 | static_cast<uint32_t>(items), std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    work(loop);
    wait(static_cast<uint32_t>(items));
    busy_.store(false, std::memory_order_release);
  }

 private:
  static int& number() {
    static thread_local int number = 0;
    return number;
  }

  static int available_cpus() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
  }

  // Claims items of this loop, the last one first, until none is left. The loop's number and how many items are left share
  // one word, and all that a claim depends on is in that word: with the number of another loop, or with nothing left, no
  // claim succeeds. A helper that comes late may well read the next loop's body and argument here, but then its own loop
  // is over, the word can never again be what it was, and it calls nothing. Where a claim does succeed the loop was not
  // over, so that the caller had not written the next loop's yet: it waits for this very item first.
  void work(uint32_t loop) {
    const Body body = body_.load(std::memory_order_relaxed);
    const void* argument = argument_.load(std::memory_order_relaxed);
    uint64_t word = word_.load(std::memory_order_acquire);
    while ((word >> 32) == loop && static_cast<uint32_t>(word) > 0) {
      if (!word_.compare_exchange_weak(word, word - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      body(argument, static_cast<uint32_t>(word) - 1);
      done_.fetch_add(1, std::memory_order_release);
      word = word_.load(std::memory_order_acquire);
    }
  }

  // Waits for the items that helpers still work on.
  void wait(uint32_t items) {
    for (int spins = 0; spins < 2000; ++spins) {
      if (done_.load(std::memory_order_acquire) == items) {
        penalty_ = std::max(kLeastPenalty, penalty_ - 1);
        return;
      }
      pause_cpu();
    }
    const auto start = std::chrono::steady_clock::now();
    while (done_.load(std::memory_order_acquire) != items) sched_yield();
    if (std::chrono::steady_clock::now() - start > std::chrono::microseconds(kLate)) {
      alone_ = penalty_;
      penalty_ = std::min(kMostPenalty, 2 * penalty_);
    }
  }

  void help(int own) {
    number() = own;
    uint32_t seen = 0;
    while (true) {
      const uint32_t loop = next_loop(seen);
      work(loop);
      seen = loop;
    }
  }

  uint32_t next_loop(uint32_t seen) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(kSpinMicroseconds);
    do {
      for (int i = 0; i < 32; ++i) {  // without yielding: on a busy machine the core would be gone for milliseconds
        const uint32_t loop = static_cast<uint32_t>(word_.load(std::memory_order_acquire) >> 32);
        if (loop != seen) return loop;
        pause_cpu();
      }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> lock(mutex_);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    uint32_t loop = seen;
    wake_.wait(lock, [&] { return (loop = static_cast<uint32_t>(word_.load(std::memory_order_seq_cst) >> 32)) != seen; });
    sleeping_.fetch_sub(1, std::memory_order_seq_cst);
    return loop;
  }

  static constexpr int kMostThreads = 16;
  static constexpr int kSpinMicroseconds = 100;
  static constexpr int kLate = 300;      // microseconds of waiting for a helper that must have lost its core
  static constexpr double kLong = 2000;  // microseconds of work that are worth a lost time slice
  static constexpr int kLeastPenalty = 8, kMostPenalty = 1024;  // loops on the caller alone

  const int helpers_;
  int alone_ = 0, penalty_ = kLeastPenalty;  // of whoever holds busy_
  std::atomic<bool> busy_{false};
  std::atomic<Body> body_{nullptr};
  std::atomic<const void*> argument_{nullptr};
  alignas(64) std::atomic<uint64_t> word_{0};  // number of the loop << 32 | items left
  alignas(64) std::atomic<uint32_t> done_{0};
  std::atomic<int> sleeping_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

template <typename F>
void parallel_for(int64_t items, double microseconds, const F& body) {
  Pool::get().run(
      items, microseconds, [](const void* f, int64_t i) noexcept { (*static_cast<const F*>(f))(i); }, &body);
}

}  // namespace lt
