// Checks the picture of samples/desktop: in the band of each head the brightest column is where the sample says the head
// was made to look. usage: picture SHOT.ppm OUTPUT.txt
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEAT_HEIGHT = 256, HEIGHT = 360, MOST_OFF = 6 };

int main(int count, char** arguments) {
    unsigned width, height, checked = 0, wrong = 0;
    FILE* picture = count == 3 ? fopen(arguments[1], "rb") : NULL;
    FILE* output = count == 3 ? fopen(arguments[2], "r") : NULL;
    if (!picture || !output || fscanf(picture, "P6 %u %u 255", &width, &height) != 2 || fgetc(picture) == EOF ||
        width == 0 || height < HEIGHT || width > 10000 || height > 10000)
        return fprintf(stderr, "no picture, or no output\n"), 2;
    unsigned char* rgb = malloc((size_t)width * height * 3);
    if (!rgb || fread(rgb, 3, (size_t)width * height, picture) != (size_t)width * height)
        return fprintf(stderr, "the picture is cut off\n"), 2;
    char line[256];
    while (fgets(line, sizeof line, output)) {
        unsigned head, heads;
        double place;
        if (sscanf(line, "head %u of %u looks at %lf", &head, &heads, &place) != 3)
            continue;
        size_t y = (size_t)((head + 0.5) * HEAT_HEIGHT / heads * height / HEIGHT);
        int brightest = -1;
        unsigned first = 0, last = 0; // of the columns that are equally bright
        for (unsigned x = 0; x < width; ++x) {
            const unsigned char* p = rgb + (y * width + x) * 3;
            int sum = p[0] + p[1] + p[2];
            if (sum > brightest)
                first = x;
            if (sum >= brightest) {
                brightest = sum;
                last = x;
            }
        }
        double off = (first + last) / 2.0 - place * width;
        if (brightest < 100 || off > MOST_OFF || off < -MOST_OFF) {
            fprintf(stderr, "head %u: brightest (%d) from column %u to %u, expected near %.0f\n", head, brightest, first,
                    last, place * width);
            wrong++;
        }
        checked++;
    }
    printf("%u heads checked, %u wrong\n", checked, wrong);
    return wrong || checked < 2;
}
