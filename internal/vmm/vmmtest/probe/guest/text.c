#include "machine.h"

u64 length(const char *s)
{
	u64 n = 0;
	while (s[n])
		n++;
	return n;
}

int starts_with(const char *s, const char *prefix)
{
	while (*prefix)
		if (*s++ != *prefix++)
			return 0;
	return 1;
}

const char *after(const char *s, const char *what)
{
	for (; *s; s++)
		if (starts_with(s, what))
			return s + length(what);
	return 0;
}

static int ends_word(char c) { return c == 0 || c == ' ' || c == ','; }

int same_word(const char *a, const char *b)
{
	while (!ends_word(*a) && *a == *b)
		a++, b++;
	return ends_word(*a) && ends_word(*b);
}

const char *after_word(const char *s)
{
	while (*s && *s != ' ')
		s++;
	while (*s == ' ')
		s++;
	return s;
}

u64 word_length(const char *s) { return after_word(s) - s - (after_word(s)[0] != 0); }

int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

u64 to_number(const char *s)
{
	u64 n = 0;
	int base = 10;
	if (starts_with(s, "0x"))
		base = 16, s += 2;
	for (int d; (d = hex_digit(*s)) >= 0 && d < base; s++)
		n = n * base + d;
	return n;
}

char *to_digits(char room[NUMBER], u64 n)
{
	char *at = room + NUMBER - 1;
	*at = 0;
	do
		*--at = '0' + n % 10;
	while (n /= 10);
	return at;
}

void *memcpy(void *to, const void *from, u64 n)
{
	u8 *t = to;
	const u8 *f = from;
	while (n--)
		*t++ = *f++;
	return to;
}

void *memset(void *to, int value, u64 n)
{
	u8 *t = to;
	while (n--)
		*t++ = value;
	return to;
}
