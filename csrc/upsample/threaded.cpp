// The race check of the upsampling operators: the GPU's launchers on threads of the CPU (common/threads.h).
#include "cuda.cu"
