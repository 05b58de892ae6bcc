// The race check of focal_pool: the GPU's launchers on threads of the CPU (common/threads.h).
#include "cuda.cu"
