# Cross build for 64-bit Windows: cmake -B build-windows --toolchain cmake/mingw.cmake
# The Vulkan headers, xxhash.h, popt and cJSON must be a Windows build's own: scripts/toolbox windows makes
# them, and tests/windows/check shows the call.
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_C_COMPILER x86_64-w64-mingw32-gcc)
set(CMAKE_RC_COMPILER x86_64-w64-mingw32-windres)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
