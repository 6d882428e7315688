#include "words.h"

#include <stdio.h>
#include <string.h>

static int failed;

static void check(const char *name, int ok) {
    printf("%s %s\n", ok ? "ok  " : "FAIL", name);
    failed += !ok;
}

int main(void) {
    char text[] = "abc";
    reverse(text);
    check("reverse", strcmp(text, "cba") == 0);
    reverse(text);
    check("reverse twice", strcmp(text, "abc") == 0);
    check("no words", count_words(" \t\n") == 0);
    check("three words", count_words(" one two\nthree") == 3);
    printf("%d failed\n", failed);
    return failed != 0;
}
