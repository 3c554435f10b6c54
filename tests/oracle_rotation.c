#include "oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool oracleRotates(const OracleRotation* rotation) {
    return rotation->style != ORACLE_ROPE_NONE || rotation->hadamard;
}

static void turn(const OracleRotation* rotation, int32_t position, double* row, uint32_t headDim) {
    uint32_t dim = rotation->dim ? rotation->dim : headDim - rotation->offset;
    double theta = rotation->theta != 0 ? rotation->theta : 10000;
    double magnitude = rotation->magnitude != 0 ? rotation->magnitude : 1;
    double* first = row + rotation->offset;
    for (uint32_t i = 0; i < dim / 2; i++) {
        bool neox = rotation->style == ORACLE_ROPE_NEOX;
        double* a = neox ? &first[i] : &first[2 * i];
        double* b = neox ? &first[i + dim / 2] : &first[2 * i + 1];
        double frequency =
            rotation->frequencies ? rotation->frequencies[i] : pow(theta, -2.0 * i / dim);
        double angle = position * frequency;
        double turnedA = (*a * cos(angle) - *b * sin(angle)) * magnitude;
        double turnedB = (*a * sin(angle) + *b * cos(angle)) * magnitude;
        *a = turnedA;
        *b = turnedB;
    }
}

// Sylvester's matrix: element (i, j) is -1 to the number of bits that i and j share.
static void hadamard(double* row, uint32_t headDim) {
    uint32_t n = headDim & (~headDim + 1); // the largest power of two that divides it
    double* product = malloc(sizeof(double) * n);
    for (double* block = row; block < row + headDim; block += n) {
        for (uint32_t i = 0; i < n; i++) {
            product[i] = 0;
            for (uint32_t j = 0; j < n; j++) {
                bool odd = false;
                for (uint32_t shared = i & j; shared; shared &= shared - 1)
                    odd = !odd;
                product[i] += odd ? -block[j] : block[j];
            }
        }
        for (uint32_t i = 0; i < n; i++)
            block[i] = product[i] / sqrt(n);
    }
    free(product);
}

void oracleRotate(const OracleRotation* rotation, int32_t position, double* row, uint32_t headDim) {
    if (rotation->style != ORACLE_ROPE_NONE)
        turn(rotation, position, row, headDim);
    if (rotation->hadamard)
        hadamard(row, headDim);
}

void oracleRotateRows(const OracleRotation* rotation, const int32_t* positions, uint32_t tokens,
                      uint32_t numHeads, uint32_t headDim, float* rows) {
    double* row = malloc(sizeof(double) * (headDim + 1));
    for (size_t r = 0; r < (size_t)tokens * numHeads && oracleRotates(rotation); r++) {
        for (uint32_t i = 0; i < headDim; i++)
            row[i] = rows[r * headDim + i];
        oracleRotate(rotation, positions ? positions[r / numHeads] : 0, row, headDim);
        for (uint32_t i = 0; i < headDim; i++)
            rows[r * headDim + i] = (float)row[i];
    }
    free(row);
}
