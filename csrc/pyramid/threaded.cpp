// The race check of fuse_pyramid: the GPU's launchers on threads of the CPU (common/threads.h).
#include "cuda.cu"
