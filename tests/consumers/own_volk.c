// An application that has volk compiled in must not collide with the library's own.
#define VK_NO_PROTOTYPES
#define VOLK_IMPLEMENTATION
#include <volk.h>
