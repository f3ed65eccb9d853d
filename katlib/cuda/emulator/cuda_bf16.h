// The kernels include this header by its name; the type itself is in emulator.h.
#include "emulator.h"
