// Attention case files (safetensors): inputs with the expected output beside them.
#ifndef CASEFILE_H
#define CASEFILE_H

#include "oracle.h"

enum { CASE_MAX_BATCH = 64 };

typedef struct CaseFile {
    void* bytes;                       // the whole file; tensors point into it
    OracleProblem problem;             // q and k before rotation
    OracleRotation rotation;           // of k at its position and of q at its own
    OracleType type;                   // of q, k and v in the file
    OracleType kType, vType;           // of the cache
    uint32_t pageSize;                 // 0 = contiguous
    int32_t seqLensKv[CASE_MAX_BATCH]; // behind problem.seqLensKv
    const double* out;                 // [totalQ, numHeadsQ, headDimV]
    const double* lse;                 // [totalQ, numHeadsQ]
} CaseFile;

// Returns false after printing why. Reads what the project's own cases hold, no more.
bool caseFileRead(const char* path, CaseFile* file);
void caseFileFree(CaseFile* file);

// Positions of all keys [totalKv], and of all queries [totalQ]. To be freed.
int32_t* caseFilePositions(const CaseFile* file, bool ofQueries);

// Judges an output by the file's, within the error that the types of tensors and cache may cause.
// Returns false after writing why.
bool caseFileAccepts(const CaseFile* file, const float* out, const float* lse, char* text,
                     size_t size);

#endif
