// Attention case files (safetensors): inputs with the expected output beside them.
#ifndef CASEFILE_H
#define CASEFILE_H

#include "oracle.h"

typedef struct CaseFile {
    void* bytes; // the whole file; tensors point into it
    OracleProblem problem;
    OracleType type;       // of q, k and v in the file
    uint32_t pageSize;     // 0 = contiguous
    int32_t seqLensKv[64]; // behind problem.seqLensKv
    const double* out;     // [totalQ, numHeadsQ, headDimV]
    const double* lse;     // [totalQ, numHeadsQ]
} CaseFile;

// Returns false after printing why. Reads what the project's own cases hold, no more.
bool caseFileRead(const char* path, CaseFile* file);
void caseFileFree(CaseFile* file);

#endif
