// The race check's stand-in for a GPU: a block's threads are threads of the CPU, under
// ThreadSanitizer.
//
// The block itself (block.h), the kernels and what launches them are those of the GPU; what is
// replaced is the hardware's part: the barrier, the exchange within a warp, shared memory and the
// launch. Shared memory starts as NaN, since a GPU leaves in it what the last block left, and ends
// in a mark, so that a write behind it does not go unseen.
#pragma once

namespace vss::inline VSS_MACHINE {

// What the threads of one block share.
class Team {
 public:
  static constexpr int kWarp = 32;
  static constexpr int kMostValues = 32;  // that a thread can exchange at a time

  explicit Team(int size) : size_(size), barrier_(size), given_(size * kMostValues) {
    for (auto& lines : lines_) lines.resize(size);
    for (int rank = 0; rank < size; rank += kWarp)
      warps_.push_back(std::make_unique<std::barrier<>>(kWarp));
  }

  int size() const { return size_; }

  // `count` is how often this thread has waited. A barrier that only some threads reach is
  // undefined on a GPU; here the others wait at some other line, at the latest at the end of the
  // block.
  void wait(int rank, int line, int64_t count) {
    std::vector<int>& lines =
        lines_[count % 2];  // threads may write the next one before all have read
    lines[rank] = line;
    barrier_.arrive_and_wait();
    if (lines[rank] == lines[0]) return;
    std::fprintf(stderr, "race check: a thread waits at line %d, another at line %d\n", lines[rank],
                 lines[0]);
    std::abort();
  }

  // Gives the thread's values to its warp and takes over those of the thread `from`.
  void exchange(int rank, float* values, int count, int from) {
    std::barrier<>& warp = *warps_[rank / kWarp];
    std::copy_n(values, count, &given_[rank * kMostValues]);
    warp.arrive_and_wait();
    std::copy_n(&given_[from * kMostValues], count, values);
    warp.arrive_and_wait();
  }

 private:
  int size_;
  std::barrier<> barrier_;
  std::vector<std::unique_ptr<std::barrier<>>> warps_;
  std::vector<float> given_;
  std::vector<int> lines_[2];
};

class TeamThread {
 public:
  TeamThread(Team& team, int rank) : team_(&team), rank_(rank) {}

  int rank() const { return rank_; }
  int size() const { return team_->size(); }
  void wait(int line) const { team_->wait(rank_, line, waits_++); }

  template <int kCount>
  void exchange(float (&values)[kCount], int mask) const {
    static_assert(kCount <= Team::kMostValues);
    team_->exchange(rank_, values, kCount, rank_ ^ mask);
  }

  template <int kBy, int kCount>
  void shift(float (&values)[kCount]) const {
    static_assert(kCount <= Team::kMostValues);
    const int lane = rank_ % Team::kWarp + kBy;
    const bool is_there = lane >= 0 && lane < Team::kWarp;
    team_->exchange(rank_, values, kCount, is_there ? rank_ + kBy : rank_);
  }

 private:
  Team* team_;
  int rank_;
  mutable int64_t waits_ = 0;
};

using Block = SharedBlock<TeamThread>;
static_assert(Block::kWarp == Team::kWarp);

// Small, so that the tests cover both the shared-memory and the workspace path, and few threads,
// because each barrier waits for all.
inline GpuLimits gpu_limits() { return {48 << 10, 96 << 10, 1, 2 * Team::kWarp}; }

// Refuses what cuda.h refuses, if a test asks for it; sanitizers want larger sizes than this too.
inline void check_scratch([[maybe_unused]] const char* op,
                          [[maybe_unused]] int64_t scratch_floats) {
#if defined(VSS_LIMIT_SCRATCH)
  const int64_t bytes = shared_bytes<Block>(scratch_floats),
                limit = gpu_limits().block_shared_bytes;
  TORCH_CHECK(bytes <= limit, op, ": a block needs ", bytes,
              " bytes of shared memory, the GPU has ", limit, "; use the eager backend");
#endif
}

// Runs blocks at the same time, as on a GPU. There are fewer of them, with fewer threads: the
// kernels take whatever there is.
template <int kThreads, typename F>
void run_blocks(const Launch& launch, const F& f) {
  static_assert(kThreads % Block::kWarp == 0);
  constexpr int64_t kMostWorkers = 2;
  constexpr uint32_t kMark = 0x7fc0dead;
  constexpr int64_t kMarks = 64;
  if (launch.blocks == 0) return;
  check_scratch(launch.op, launch.scratch_floats);
  const int64_t workers = std::min(worker_count(launch, gpu_limits()), kMostWorkers);
  const int64_t wanted = std::clamp<int64_t>(
      launch.threads, 1, std::min<int64_t>(kThreads, gpu_limits().block_threads));
  const int size = static_cast<int>(cdiv<int64_t>(wanted, Block::kWarp)) * Block::kWarp;
  const int64_t floats = Block::kReserved + launch.scratch_floats;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> workspace(workers * launch.workspace_floats, kNan);
  std::vector<std::vector<float>> shared(workers, std::vector<float>(floats + kMarks, kNan));
  std::vector<std::unique_ptr<Team>> teams;
  for (std::vector<float>& memory : shared) {
    std::fill(memory.end() - kMarks, memory.end(), std::bit_cast<float>(kMark));
    teams.push_back(std::make_unique<Team>(size));
  }
  std::vector<std::thread> threads;
  for (int64_t worker = 0; worker < workers; ++worker) {
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, worker, rank] {
        const Block block(shared[worker].data(),
                          workspace.data() + worker * launch.workspace_floats,
                          {*teams[worker], rank});
        run_worker(f, block, launch.blocks, worker, workers);
        block.sync();
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& memory : shared) {
    for (int64_t i = floats; i < floats + kMarks; ++i) {
      if (std::bit_cast<uint32_t>(memory[i]) == kMark) continue;
      std::fprintf(stderr, "race check: float %ld of %ld of shared memory was written\n",
                   static_cast<long>(i), static_cast<long>(floats));
      std::abort();
    }
  }
}

}  // namespace vss::inline VSS_MACHINE
