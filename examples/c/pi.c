// Sums one share of the series for pi; JOB_COMPLETION_INDEX says which.
#include <stdio.h>
#include <stdlib.h>

static long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? strtol(value, NULL, 10) : otherwise;
}

int main(void) {
    long index = setting("JOB_COMPLETION_INDEX", 0);
    long shares = setting("SHARES", 1);
    long terms = setting("TERMS", 1000000);
    if (shares < 1 || index < 0 || index >= shares) {
        fprintf(stderr, "share %ld of %ld does not exist\n", index, shares);
        return 2;
    }
    double sum = 0;
    for (long k = index; k < terms; k += shares) {
        sum += (k % 2 ? -4.0 : 4.0) / (2.0 * (double)k + 1.0);
    }
    printf("share %ld of %ld: %.6f\n", index, shares, sum);
    return 0;
}
