// A fuzzer's inputs, one after the other: every file of the given folders. Stands where libFuzzer's main would.
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

static void replay(const char* folder, const char* name) {
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE* file = fopen(path, "rb");
    static uint8_t data[1 << 20];
    size_t size = file ? fread(data, 1, sizeof(data), file) : 0;
    if (file)
        fclose(file);
    uint8_t* exact = malloc(size ? size : 1); // as libFuzzer gives it
    for (size_t i = 0; i < size; i++)
        exact[i] = data[i];
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

int main(int count, char** folders) {
    unsigned inputs = 0;
    for (int i = 1; i < count; i++) {
        DIR* folder = opendir(folders[i]);
        for (struct dirent* entry; folder && (entry = readdir(folder));)
            if (entry->d_name[0] != '.') {
                replay(folders[i], entry->d_name);
                inputs++;
            }
        if (folder)
            closedir(folder);
    }
    fprintf(stderr, "%u inputs\n", inputs);
    return inputs == 0;
}
