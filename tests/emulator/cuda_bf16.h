#include "emulator.h"      // the type is in there; the kernel asks for this header by its name
