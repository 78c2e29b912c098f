/* The serial port: a 16550 at ports 0x3f8 to 0x3ff. The VMM's needs no setup and is
 * always ready to send. */
#include "machine.h"

enum { PORT_DATA = 0x3f8, PORT_STATUS = 0x3fd, STATUS_HAS_DATA = 1 };

int heard(void) { return in8(PORT_STATUS) & STATUS_HAS_DATA ? in8(PORT_DATA) : -1; }

static char *aside;
static u64 aside_size, aside_used;

void say_aside(char *to, u64 size)
{
	aside = to;
	aside_size = size;
	aside_used = 0;
}

u64 said_aside(void) { return aside_used; }

static void say_byte(char c)
{
	if (!aside)
		out8(PORT_DATA, c);
	else if (aside_used < aside_size)
		aside[aside_used++] = c;
}

void say_bytes(const char *s, u64 n)
{
	while (n--)
		say_byte(*s++);
}

void say(const char *s) { say_bytes(s, length(s)); }

void say_number(u64 n)
{
	char digits[NUMBER];
	say(to_digits(digits, n));
}

void say_hex(const u8 *bytes, u64 n)
{
	static const char digits[] = "0123456789abcdef";
	for (u64 i = 0; i < n; i++) {
		say_byte(digits[bytes[i] >> 4]);
		say_byte(digits[bytes[i] & 15]);
	}
}
