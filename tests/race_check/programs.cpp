// Block programs with and without mistakes, to see that the race check finds them.
#include "machine/standard.h"
#include "machine/target.h"
#include "machine/block.h"
#include "machine/race_check.h"

namespace {

using vss::Block;

constexpr int kThreads = 64;

// Every thread reads what another wrote.
template <bool kSync>
struct Reverse {
  float* result;
  VSS_DEVICE void operator()(const Block& block, int64_t) const {
    float* values = block.scratch();
    block.for_each(kThreads, [&](int64_t i) { values[i] = static_cast<float>(i); });
    if constexpr (kSync) block.sync();
    block.for_each(kThreads, [&](int64_t i) { result[i] = values[kThreads - 1 - i]; });
    block.sync();
  }
};

// Two blocks write the same result.
struct Collide {
  float* result;
  VSS_DEVICE void operator()(const Block& block, int64_t) const {
    block.for_each(1, [&](int64_t i) { result[i] = 1.0f; });
  }
};

// Half of the block waits for all of it.
struct Diverge {
  VSS_DEVICE void operator()(const Block& block, int64_t) const {
    if (block.rank() < kThreads / 2) block.sync();
    block.for_each(1, [](int64_t) {});
    if (block.rank() >= kThreads / 2) block.sync();
  }
};

struct Overrun {
  VSS_DEVICE void operator()(const Block& block, int64_t) const {
    block.for_each(kThreads, [&](int64_t i) { block.scratch()[i] = 0.0f; });
  }
};

// Memory that nobody wrote is NaN, and so is what is computed from it.
struct Forget {
  float* result;
  VSS_DEVICE void operator()(const Block& block, int64_t) const {
    const float sum = block.sum(1, [&](int64_t i) { return block.scratch()[i]; });
    block.for_each(1, [&](int64_t i) { result[i] = sum; });
  }
};

template <typename F>
void run(int64_t blocks, int64_t scratch_floats, const F& f) {
  vss::run_blocks<kThreads>(
      {.op = "race check", .blocks = blocks, .threads = kThreads, .scratch_floats = scratch_floats},
      f);
}

}  // namespace

int main(int, char** arguments) {
  const char* name = arguments[1];
  float result[kThreads] = {};
  if (std::strcmp(name, "correct") == 0) {
    run(1, kThreads, Reverse<true>{result});
    for (int i = 0; i < kThreads; ++i)
      if (result[i] != kThreads - 1 - i) return 1;
  }
  if (std::strcmp(name, "missing sync") == 0) run(1, kThreads, Reverse<false>{result});
  if (std::strcmp(name, "colliding blocks") == 0) run(2, 0, Collide{result});
  if (std::strcmp(name, "divergent sync") == 0) run(1, 0, Diverge{});
  if (std::strcmp(name, "overrun") == 0) run(1, kThreads - 1, Overrun{});
  if (std::strcmp(name, "never written") == 0) {
    run(1, 1, Forget{result});
    return result[0] == result[0] ? 1 : 0;
  }
  return 0;
}
