#include "failures.h"

#include <stdio.h>

bool attemptNote(Attempt* attempt, VkResult result, const char* call, bool again) {
    attempt->last = result < 0 ? result : VK_SUCCESS;
    attempt->lastCall = call;
    if (result >= 0)
        return true;
    if (!again && !attempt->first) {
        attempt->first = result;
        attempt->call = call;
        snprintf(attempt->message, sizeof(attempt->message), "%s", harness.message);
    }
    return false;
}
