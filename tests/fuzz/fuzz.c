// See fuzz.h.
#include "fuzz.h"

uint32_t fuzzErrors;

// FUZZ_SAY=1 shows what the library says of an input.
void fuzzMessage(VkmqaSeverity severity, const char* text, void* userData) {
    (void)userData;
    REQUIRE(text && strlen(text) > 10, "an empty message");
    if (severity != VKMQA_SEVERITY_ERROR)
        return;
    fuzzErrors++;
    if (getenv("FUZZ_SAY"))
        fprintf(stderr, "%s\n", text);
}
