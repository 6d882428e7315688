#ifndef WORDS_H
#define WORDS_H
#include <stddef.h>

/* The number of words in a text: runs of characters other than white space. */
size_t count_words(const char *text);

/* Turns the order of a text's bytes around, in place. */
void reverse(char *text);

#endif
