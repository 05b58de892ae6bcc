// The race check of aggregate_affinity: the GPU's launchers on threads of the CPU (common/threads.h).
#include "cuda.cu"
