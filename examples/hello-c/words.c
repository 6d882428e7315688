#include "words.h"

#include <ctype.h>
#include <string.h>

size_t count_words(const char *text) {
    size_t words = 0;
    int inside = 0;
    for (; *text; text++) {
        int space = isspace((unsigned char)*text);
        words += !space && !inside;
        inside = !space;
    }
    return words;
}

void reverse(char *text) {
    size_t length = strlen(text);
    for (size_t i = 0; i < length / 2; i++) {
        char kept = text[i];
        text[i] = text[length - 1 - i];
        text[length - 1 - i] = kept;
    }
}
