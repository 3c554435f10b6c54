#include "failures.h"

#include <stdio.h>

bool attemptNote(Attempt* attempt, VkResult result, const char* call, bool again) {
    const bool failed = result < 0 || result == VK_TIMEOUT;
    attempt->last = failed ? result : VK_SUCCESS;
    attempt->lastCall = call;
    if (!failed)
        return true;
    if (!again && !attempt->first) {
        attempt->first = result;
        attempt->call = call;
        snprintf(attempt->message, sizeof(attempt->message), "%s", harness.message);
    }
    return false;
}
