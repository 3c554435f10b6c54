// What an application does first. Built in every way that an application may find the library.
#include <vkmqa/vkmqa.h>
#include <vkmqa/vkmqa_runtime.h>

#include <stdio.h>

int main(void) {
    uint32_t version = vkmqaGetVersion();
    printf("vkmqa %u.%u.%u\n", version >> 22, version >> 12 & 1023, version & 4095);
    return version == VKMQA_VERSION ? 0 : 1;
}
